"""What looks like a card number (PAN) must reach no log, no answer and no database."""

import re
from collections.abc import Iterator
from itertools import accumulate, cycle
from typing import Any

# A UUID's digits are no card number, however they fall.
_UUID = r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
_UUID_OR_DIGITS = re.compile(rf"(?P<uuid>{_UUID})|\d+(?:[ -]\d+)*")
_SEPARATORS = re.compile(r"[ -]")
_FEWEST, _MOST = 13, 19  # digits
_MASK = "9"  # a digit, so that a number in JSON stays a number; nines alone pass for no card


def find(value: Any, path: str = "") -> Iterator[str]:
    """Yield where ``value``, which is parsed JSON, holds what looks like a card number: ``items.0.sku``.

    Texts, numbers and keys count, at any depth; a key that looks like one is masked in its own path.
    """
    pending = [(path, value)]  # no recursion: a client decides how deep it goes
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            for key, nested in value.items():
                inner = f"{path}.{masked(key)}".lstrip(".")
                if looks_like_one(key):
                    yield inner
                pending.append((inner, nested))
        elif isinstance(value, list):
            pending.extend((f"{path}.{index}".lstrip("."), nested) for index, nested in enumerate(value))
        elif isinstance(value, str | int | float) and looks_like_one(_text(value)):
            yield path


def looks_like_one(text: str) -> bool:
    """Say whether a text holds what looks like a card number; spaces and dashes may separate its digits."""
    return masked(text) != text


def masked(text: str) -> str:
    """Return a text without the digits of what looks like a card number."""
    return _UUID_OR_DIGITS.sub(_mask, text)


def _text(value: str | float) -> str:
    """Return a number's digits; 4.0 is 4, and a fraction or a number that is too large is no card's."""
    if isinstance(value, str):
        return value
    return str(int(value)) if abs(value) < 10**_MOST and value == int(value) else ""


def _mask(found: re.Match[str]) -> str:
    text = found[0]
    if found["uuid"] or len(text) < _FEWEST or not _holds_card(_SEPARATORS.split(text)):
        return text
    return re.sub(r"\d", _MASK, text)


def _holds_card(groups: list[str]) -> bool:
    """Say whether some of the neighbouring groups of digits, taken together, could be a card number.

    By Luhn's sums from the run's begin, so that a long run costs no more for each digit than a short one.
    """
    digits = [int(digit) for group in groups for digit in group]
    bounds = list(accumulate(map(len, groups), initial=0))
    sums = [list(accumulate(map(_counted, digits, cycle(doubled)), initial=0)) for doubled in _DOUBLED]
    low = 0
    for end in bounds:
        luhn = sums[end % 2]
        while end - bounds[low] > _MOST:
            low += 1
        at = low
        while end - bounds[at] >= _FEWEST:
            start = bounds[at]
            # one digit again and again is nobody's number
            if (luhn[end] - luhn[start]) % 10 == 0 and len(set(digits[start:end])) > 1:
                return True
            at += 1
    return False


#: Which digits count double, by whether the number's end, which does not, has an even index.
_DOUBLED = ((True, False), (False, True))


def _counted(digit: int, doubled: bool) -> int:
    return sum(divmod(2 * digit, 10)) if doubled else digit
