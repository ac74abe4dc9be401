"""What the demo orders: the mix of fates, as data. Pure."""

import random
from dataclasses import dataclass
from typing import Any

from shared.contracts.saga import Status

AREAS = ("north", "south", "east", "west")
NOWHERE = "atlantis"  # an area that no courier serves
_MENU = {"pizza": 1290, "pasta": 1150, "salad": 890, "sushi": 1890, "soup": 640}  # cents


@dataclass(frozen=True, slots=True)
class Fate:
    """A kind of order: the provider's token that forces what happens, and how such an order must end."""

    name: str
    token: str
    ends: Status
    count: int = 0  # of this kind in every demo; 0: the rest
    areas: tuple[str, ...] = AREAS


FATES = (
    Fate("all well", "tok_ok", Status.COMPLETED),
    Fate("card declined", "tok_declined", Status.CANCELLED, count=3),
    Fate("insufficient funds", "tok_insufficient_funds", Status.CANCELLED, count=2),
    Fate("provider hiccups", "tok_error_twice", Status.COMPLETED, count=3),
    Fate("answer lost", "tok_timeout_after_charge_once", Status.COMPLETED, count=2),
    Fate("nobody delivers", "tok_ok", Status.CANCELLED, count=1, areas=(NOWHERE,)),
    Fate("provider is down", "tok_error_always", Status.AWAITING_PAYMENT, count=1),
)


@dataclass(frozen=True, slots=True)
class DemoOrder:
    """An order to be placed: the request's body and its fate."""

    fate: Fate
    body: dict[str, Any]


def mix(count: int, seed: int) -> list[DemoOrder]:
    """Return ``count`` orders of all fates in an arbitrary order; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311 - a demo, not a secret
    special = [fate for fate in FATES for _ in range(fate.count)]
    fates = special + [FATES[0]] * (count - len(special))
    dice.shuffle(fates)
    return [DemoOrder(fate, _body(number, fate, dice)) for number, fate in enumerate(fates, start=1)]


def _body(number: int, fate: Fate, dice: random.Random) -> dict[str, Any]:
    dishes = dice.sample(sorted(_MENU), k=dice.randint(1, 3))
    quantities = {dish: dice.randint(1, 3) for dish in dishes}
    return {
        "customer_id": f"cus_{number}",
        "items": [{"sku": dish, "quantity": quantity} for dish, quantity in quantities.items()],
        "amount_cents": sum(_MENU[dish] * quantity for dish, quantity in quantities.items()),
        "currency": "EUR",
        "payment_method": fate.token,
        "address": {
            "line1": f"Main St {number}",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
            "area": dice.choice(fate.areas),
        },
    }
