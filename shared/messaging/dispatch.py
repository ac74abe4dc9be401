"""Send an order on its way: what the API does after the commit, and the sweeper for whatever got stuck."""

from celery import Celery

from shared.contracts import saga
from shared.messaging.events import publish_events


def dispatch(app: Celery, way: saga.Dispatch) -> None:
    """Publish the events and the chain.

    Safe to repeat: every step may run any number of times. Raises kombu's ``OperationalError`` when the broker
    did not confirm, which does not mean that nothing was published.
    """
    publish_events(app, *way.events)
    (saga.backward if way.back else saga.forward)(way.waybill).apply_async()
