"""``/v1/orders``: place an order, see it move."""

from typing import Any
from uuid import UUID

from flask import current_app, url_for
from flask.views import MethodView
from flask_smorest import abort
from marshmallow import RAISE

from api.correlation import correlation_id
from api.dispatcher import Dispatcher
from api.parsing import StrictBlueprint
from api.schemas import NewOrderSchema, OrderPageSchema, OrderSchema, PageQuerySchema, TimelineSchema
from shared.telemetry.logs import get_logger
from workers.orders import operations

log = get_logger(__name__)
blueprint = StrictBlueprint("orders", __name__, url_prefix="/v1/orders", description="Orders")


def _dispatcher() -> Dispatcher:
    return current_app.extensions["dispatcher"]  # type: ignore[no-any-return]


@blueprint.route("")
class Orders(MethodView):
    """The collection."""

    @blueprint.arguments(NewOrderSchema, error_status_code=400)
    @blueprint.response(202, OrderSchema)
    def post(self, details: dict[str, Any]) -> Any:
        """Place an order: it is stored as PENDING and worked on; follow it at ``Location``."""
        order, way = operations.place(details, correlation_id())
        log.info("order_placed", order_id=order.id)
        _dispatcher().send(way)
        return order, 202, {"Location": url_for("orders.OneOrder", order_id=order.id)}

    @blueprint.arguments(PageQuerySchema, location="query", unknown=RAISE, error_status_code=400)
    @blueprint.response(200, OrderPageSchema)
    def get(self, query: dict[str, int]) -> Any:
        """List orders, newest first."""
        page = operations.list_orders(**query)
        return {"count": page.count, **query, "results": page.results}


@blueprint.route("/<uuid:order_id>")
class OneOrder(MethodView):
    """One order."""

    @blueprint.response(200, OrderSchema)
    def get(self, order_id: UUID) -> Any:
        """Show an order."""
        return operations.find(str(order_id)) or abort(404)


@blueprint.route("/<uuid:order_id>/cancel")
class Cancellation(MethodView):
    """The end of an order that is not wanted any more."""

    @blueprint.response(202, OrderSchema)
    def post(self, order_id: UUID) -> Any:
        """Cancel an order at any moment: whatever was done for it is undone; follow it at ``Location``."""
        cancelled = operations.cancel(str(order_id))
        if cancelled is None:
            return abort(404)
        order, way_back = cancelled
        log.info("order_cancel_requested", order_id=order.id)
        _dispatcher().send(way_back)
        return order, 202, {"Location": url_for("orders.OneOrder", order_id=order.id)}


@blueprint.route("/<uuid:order_id>/events")
class Timeline(MethodView):
    """An order's timeline."""

    @blueprint.response(200, TimelineSchema)
    def get(self, order_id: UUID) -> Any:
        """Show what happened to an order, oldest first."""
        events = operations.timeline(str(order_id))
        return {"results": events} if events is not None else abort(404)
