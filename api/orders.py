"""``/v1/orders``: place an order, see it move."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from flask.views import MethodView
from flask_smorest import abort

from api import placing
from api.auth import caller, requires
from api.documentation import keyed, operation, places
from api.limits import limited
from api.outcomes import View
from api.parsing import StrictBlueprint
from api.schemas import (
    DetailQuerySchema,
    ListQuerySchema,
    NewOrderSchema,
    NothingSchema,
    OrderDetailSchema,
    OrderPageSchema,
    OrderSchema,
    TimelineSchema,
)
from workers.orders import details as pictures
from workers.orders import listing, operations
from workers.orders.operations import Order

blueprint = StrictBlueprint("orders", __name__, url_prefix="/v1/orders", description="Orders")
VIEW = View(OrderSchema(), "orders.OneOrder")


def owner() -> str | None:
    """Return whose orders the caller may see: their own, or None for everybody's."""
    return None if caller().sees_all else caller().subject


@blueprint.route("")
class Orders(MethodView):
    """The collection."""

    @requires("orders:write")
    @limited("create")
    @places(OrderSchema)
    @blueprint.arguments(NewOrderSchema)
    @blueprint.response(202, OrderSchema)
    def post(self, details: dict[str, Any]) -> Any:
        """Place an order: it is stored as PENDING and worked on; follow it at ``Location``.

        With ``Prefer: wait=N`` the answer is the outcome, if there is one within N seconds (at most 30).
        """
        return placing.place(details, details, VIEW)

    @requires("orders:read")
    @limited("list")
    @operation("listOrders")
    @blueprint.arguments(ListQuerySchema, location="query")
    @blueprint.response(200, OrderPageSchema)
    def get(self, query: dict[str, Any]) -> Any:
        """List orders, newest first."""
        return page(**query)


@blueprint.route("/<uuid:order_id>")
class OneOrder(MethodView):
    """One order."""

    @requires("orders:read")
    @limited("detail")
    @operation("getOrder", 404)
    @blueprint.arguments(DetailQuerySchema, location="query")
    @blueprint.response(200, OrderDetailSchema)
    def get(self, query: dict[str, Any], order_id: UUID) -> Any:
        """Show an order."""
        return one(str(order_id), query["expand"])


@blueprint.route("/<uuid:order_id>/cancel")
class Cancellation(MethodView):
    """The end of an order that is not wanted any more."""

    @requires("orders:write")
    @limited("create")
    @keyed("cancelOrder", OrderSchema, 404)
    @blueprint.arguments(NothingSchema, required=False)
    @blueprint.response(202, OrderSchema)
    def post(self, _nothing: dict[str, Any], order_id: UUID) -> Any:
        """Cancel an order at any moment: whatever was done for it is undone; follow it at ``Location``."""
        return placing.cancel(str(order_id), owner(), VIEW) or abort(404)


@blueprint.route("/<uuid:order_id>/events")
class Timeline(MethodView):
    """An order's timeline."""

    @requires("orders:read")
    @limited("detail")
    @operation("listOrderEvents", 404)
    @blueprint.response(200, TimelineSchema)
    def get(self, order_id: UUID) -> Any:
        """Show what happened to an order, oldest first."""
        return timeline(str(order_id))


def page(page: int, page_size: int, after: listing.Cursor | None = None, **which: Any) -> dict[str, Any]:
    """Return a part of the list as the schema shows it."""
    chosen = listing.Filter(owner=owner(), **which)
    found = listing.after(chosen, after, page_size) if after else listing.page(chosen, page, page_size)
    where = {} if after else {"count": found.count, "page": page}
    return {**where, "page_size": page_size, "next": found.next and str(found.next), "results": found.results}


def one(order_id: str, expand: Sequence[str]) -> dict[str, Any]:
    """Return an order with what was asked for besides; 404 without it."""
    if not expand:
        return _fields(operations.find(order_id, owner()) or abort(404))
    order, events = operations.find_with_events(order_id, owner()) or abort(404)
    more = {"payment": pictures.payment, "delivery": pictures.delivery, "timeline": lambda *_: events}
    return {**_fields(order), **{name: more[name](order, events) for name in expand}}


def timeline(order_id: str) -> dict[str, Any]:
    """Return an order's events; 404 without it."""
    _, events = operations.find_with_events(order_id, owner()) or abort(404)
    return {"results": events}


def _fields(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in OrderSchema().fields}
