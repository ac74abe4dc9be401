"""``/api/orders/``: the same orders for clients of an earlier gateway, which wait for the outcome.

They send less, so what an order needs besides comes from ``COMPAT_DEFAULTS``; they read ``CONFIRMED`` for COMPLETED.
"""

from typing import Any
from uuid import UUID

from flask import Flask, current_app
from flask.views import MethodView
from flask_smorest import abort
from marshmallow import ValidationError, fields, post_load, validate

from api import orders, placing
from api.auth import caller, requires
from api.documentation import keyed, operation, places
from api.limits import limited
from api.outcomes import View
from api.parsing import StrictBlueprint
from api.schemas import (
    AddressSchema,
    DetailQuerySchema,
    ListQuerySchema,
    NewOrderSchema,
    NothingSchema,
    OrderDetailSchema,
    OrderPageSchema,
    OrderSchema,
    TimelineSchema,
    text,
    token,
)
from shared.contracts.saga import Status
from shared.errors import ConfigurationError
from shared.settings import Settings, get_settings

_WAIT = 10  # seconds
_SUFFIX = "Compat"  # of the operations' ids
CONFIRMED = "CONFIRMED"
_KNOWN = {Status.COMPLETED: CONFIRMED}

blueprint = StrictBlueprint("compat", __name__, url_prefix="/api/orders", description="Orders, synchronously")


class _Status(fields.String):
    """A status as these clients know it."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._serialize(_KNOWN.get(value, value), *args, **kwargs)


class CompatNewOrderSchema(NewOrderSchema):
    """A new order; who, how paid and where to may be left out."""

    customer_id = text(128)
    payment_method = token()
    address = fields.Nested(AddressSchema)


class CompatOrderSchema(OrderSchema):
    """An order as these clients see it."""

    status = _Status()


class CompatOrderDetailSchema(OrderDetailSchema):
    """An order with what was asked for besides."""

    status = _Status()


class CompatOrderPageSchema(OrderPageSchema):
    """Some orders."""

    results = fields.List(fields.Nested(CompatOrderSchema))


class CompatListQuerySchema(ListQuerySchema):
    """Which part of the list, with the status as these clients know it."""

    status = fields.String(validate=validate.OneOf([_KNOWN.get(status, str(status)) for status in Status]))

    @post_load
    def _as_ours(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        if query.get("status") == CONFIRMED:
            query["status"] = str(Status.COMPLETED)
        return query


VIEW = View(CompatOrderSchema(), "compat.CompatOrder")


def completion(settings: Settings) -> dict[str, Any]:
    """Return what completes an order; raise ``ConfigurationError`` naming what is wrong with it."""
    try:
        schema = NewOrderSchema(only=("payment_method", "address"))
        return schema.load(settings.compat_defaults)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise ConfigurationError(f"COMPAT_DEFAULTS: {error.messages} Correct the variable and start again.") from None


def register(app: Flask) -> None:
    """Read what completes an order in ``app``; raises ``ConfigurationError``."""
    app.config["COMPAT_DEFAULTS"] = completion(get_settings())


@blueprint.route("/")
class CompatOrders(MethodView):
    """The collection."""

    @requires("orders:write")
    @limited("create")
    @places(CompatOrderSchema, _SUFFIX)
    @blueprint.arguments(CompatNewOrderSchema)
    @blueprint.response(201, CompatOrderSchema)
    def post(self, asked: dict[str, Any]) -> Any:
        """Place an order and wait for its outcome, for 10 seconds or as ``Prefer: wait=N`` says."""
        defaults = {"customer_id": caller().subject, **current_app.config["COMPAT_DEFAULTS"]}
        return placing.place({**defaults, **asked}, asked, VIEW, _WAIT)

    @requires("orders:read")
    @limited("list")
    @operation("listOrders" + _SUFFIX)
    @blueprint.arguments(CompatListQuerySchema, location="query")
    @blueprint.response(200, CompatOrderPageSchema)
    def get(self, query: dict[str, Any]) -> Any:
        """List orders, newest first."""
        return orders.page(**query)


@blueprint.route("/<uuid:order_id>/")
class CompatOrder(MethodView):
    """One order."""

    @requires("orders:read")
    @limited("detail")
    @operation("getOrder" + _SUFFIX, 404)
    @blueprint.arguments(DetailQuerySchema, location="query")
    @blueprint.response(200, CompatOrderDetailSchema)
    def get(self, query: dict[str, Any], order_id: UUID) -> Any:
        """Show an order."""
        return orders.one(str(order_id), query["expand"])


@blueprint.route("/<uuid:order_id>/cancel/")
class CompatCancellation(MethodView):
    """The end of an order that is not wanted any more."""

    @requires("orders:write")
    @limited("create")
    @keyed("cancelOrder", CompatOrderSchema, 404, suffix=_SUFFIX)
    @blueprint.arguments(NothingSchema, required=False)
    @blueprint.response(202, CompatOrderSchema)
    def post(self, _nothing: dict[str, Any], order_id: UUID) -> Any:
        """Cancel an order at any moment."""
        return placing.cancel(str(order_id), orders.owner(), VIEW) or abort(404)


@blueprint.route("/<uuid:order_id>/events/")
class CompatTimeline(MethodView):
    """An order's timeline."""

    @requires("orders:read")
    @limited("detail")
    @operation("listOrderEvents" + _SUFFIX, 404)
    @blueprint.response(200, TimelineSchema)
    def get(self, order_id: UUID) -> Any:
        """Show what happened to an order, oldest first."""
        return orders.timeline(str(order_id))
