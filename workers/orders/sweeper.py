"""Drive on every order that fell silent: a lost message, a crash between commit and publish, a passed deadline."""

from datetime import UTC, datetime, timedelta

from celery import Celery

from shared.messaging.broker import BROKER_ERRORS
from shared.messaging.dispatch import dispatch
from shared.settings import get_settings
from shared.telemetry.logs import get_logger, order_context
from shared.telemetry.metrics import record_swept
from workers.orders import idempotency, operations, webhooks

BATCH = 100
_KEEP_RECEIPTS = timedelta(days=1)
_FORGET = 1000  # of each kind in one run: no transaction is long

log = get_logger(__name__)


def sweep(app: Celery) -> int:
    """Publish the chain of every order that is due; return how many. Does nothing while the queues are long."""
    if longest(app) > get_settings().sweep_queue_limit:
        log.info("sweep_skipped", reason="silence means nothing while the queues are long")
        return 0
    swept = 0
    while due := operations.take_due(BATCH):
        for order in due:
            with order_context(order.waybill.order_id, order.waybill.correlation_id):
                log.info("order_swept", back=order.back)
                dispatch(app, order)
        swept += len(due)
        record_swept(len(due))
    return swept


def forget_old() -> None:
    """Delete what nobody will ask for again; a bounded number, the next run goes on."""
    now = datetime.now(UTC)
    webhooks.forget_receipts(now - _KEEP_RECEIPTS, _FORGET)
    idempotency.forget_keys(now - timedelta(seconds=get_settings().idempotency_ttl), _FORGET)


def longest(app: Celery) -> int:
    """Return the number of messages ready in the longest queue of the saga; 0 when the broker does not say."""
    try:
        with app.connection_for_write() as connection:
            declare = connection.default_channel.queue_declare
            return max(int(declare(queue.name, passive=True).message_count) for queue in app.conf.task_queues)
    except BROKER_ERRORS:
        return 0
