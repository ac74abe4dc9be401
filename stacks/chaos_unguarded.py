"""A payments worker without its guards, for the negative control: ``python -m stacks.chaos_unguarded worker``.

No row says that an order was charged, and each attempt has a key of its own, so the provider cannot tell it from a
new charge. Production code has no such switch: this module replaces the operation before the worker starts.
"""

import sys
import uuid

from celery.__main__ import main

from shared.contracts.events import EventType
from shared.contracts.waybill import Waybill
from shared.errors import Declined
from shared.messaging.step import Outcome
from workers.payments import operations
from workers.payments.gateways import payment_gateway


def charge(waybill: Waybill) -> Outcome:
    """Charge as one would without thinking of a second time."""
    answer = payment_gateway().charge(
        f"charge-{uuid.uuid4()}", waybill.amount_cents, waybill.currency, waybill.payment_method
    )
    if answer.transaction_id is None:
        raise Declined(answer.failure_code or "PAYMENT_FAILED", event=EventType.PAYMENT_DECLINED)
    stamp = {"transaction_id": answer.transaction_id}
    data = {**stamp, "amount_cents": waybill.amount_cents, "currency": waybill.currency}
    return Outcome(EventType.PAYMENT_CAPTURED, data=data, stamp=stamp)


if __name__ == "__main__":
    operations.charge = charge
    sys.argv[1:] = ["-A", "workers.payments", *sys.argv[1:]]
    main()
