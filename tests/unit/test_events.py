"""Events: ids that depend on the fact alone, envelopes after CloudEvents 1.0, a parser nothing can break."""

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.events import EventType, event_id, new_event, parse_event
from shared.errors import MalformedMessage

ORDER = "11111111-1111-4111-8111-111111111111"
SECRET = "tok_secret_4242"


def envelope(**changes: Any) -> dict[str, Any]:
    """Return a good envelope with fields changed."""
    fact = new_event(EventType.PAYMENT_CAPTURED, ORDER, source="payments", correlation_id="corr-1", data={"a": 1})
    return {**fact.to_cloudevent(), **changes}


def test_an_event_survives_the_wire() -> None:
    """What is stated is read back equal, through JSON."""
    fact = new_event(EventType.PAYMENT_CAPTURED, ORDER, source="payments", correlation_id="corr-1", data={"a": 1})
    assert parse_event(json.loads(json.dumps(fact.to_cloudevent()))) == fact


def test_an_envelope_is_a_cloudevent() -> None:
    """The attributes that CloudEvents 1.0 requires, and ours."""
    told = envelope()
    assert told.keys() == {
        *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"),
        *("correlationid", "data"),
    }
    assert told["specversion"] == "1.0"
    assert (told["subject"], told["source"]) == (ORDER, "/waybill/payments")
    assert told["dataschema"] == "urn:waybill:event:payment.captured:1"
    assert datetime.fromisoformat(told["time"]).utcoffset() == timedelta()


def test_the_id_of_a_fact_never_changes() -> None:
    """Ids are on timelines already: the same fact must have this id in every release."""
    assert event_id(ORDER, EventType.PAYMENT_CAPTURED) == "a6507860-e7c6-58d8-bbc8-1a5c579d519a"
    assert event_id(ORDER, EventType.STEP_PARKED, "payments.charge/task-1") == "1b93567f-fcfe-5bd6-b7e9-93991262a562"


@given(
    st.lists(st.tuples(st.uuids().map(str), st.sampled_from(EventType), st.text(max_size=9)), min_size=2, unique=True)
)
def test_different_facts_have_different_ids(facts: list[tuple[str, str, str]]) -> None:
    """Order, type and discriminator each tell facts apart."""
    assert len({event_id(*fact) for fact in facts}) == len(facts)


def test_the_id_does_not_depend_on_when_or_what() -> None:
    """A step that runs twice states the same event twice."""
    first, again = (
        new_event(EventType.PAYMENT_CAPTURED, ORDER, source=source, correlation_id="c", data=data)
        for source, data in (("payments", {"transaction_id": "txn_1"}), ("other", {}))
    )
    assert first.id == again.id


@given(st.dictionaries(st.text(min_size=1).map("x".__add__), st.text(), max_size=4))
def test_unknown_fields_are_ignored(unknown: dict[str, str]) -> None:
    """A later version's attributes are not ours to judge."""
    told = envelope()
    assert parse_event({**unknown, **told}) == parse_event(told)


def test_a_later_schema_version_and_an_unknown_type_are_read() -> None:
    """Whoever records keeps what it does not understand."""
    told = envelope(type="stock.reserved", dataschema="urn:waybill:event:stock.reserved:9")
    assert parse_event(told).type == "stock.reserved"


def test_times_of_any_zone_are_read_and_a_bare_one_is_utc() -> None:
    """Every parsed time is aware."""
    assert parse_event(envelope(time="2026-01-02T03:04:05+02:00")).time == datetime(
        2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))
    )
    assert parse_event(envelope(time="2026-01-02T03:04:05")).time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("field", ["correlationid", "data"])
def test_what_is_optional_may_be_missing(field: str) -> None:
    """An event of another producer need not carry our extension, nor data."""
    told = envelope()
    del told[field]
    assert not getattr(parse_event(told), {"correlationid": "correlation_id"}.get(field, field))


@pytest.mark.parametrize("field", ["specversion", "id", "source", "type", "subject", "time"])
def test_what_is_required_is_named_when_missing(field: str) -> None:
    """An envelope without it is refused."""
    told = envelope()
    del told[field]
    with pytest.raises(MalformedMessage, match=f"event: .*{field}"):
        parse_event(told)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("specversion", "2.0"),
        ("id", "7"),
        ("id", None),
        ("subject", "nobody"),
        ("type", ""),
        ("type", "x" * 65),
        ("type", 5),
        ("type", "a\x00b"),
        ("source", None),
        ("source", "/waybill/" + "x" * 65),
        ("source", "a\x00b"),
        ("time", "yesterday"),
        ("time", 5),
        ("time", "0001-01-01T00:00:00+14:00"),
        ("time", "9999-12-31T23:59:59-14:00"),
        ("correlationid", "x" * 65),
        ("data", []),
        ("data", "text"),
    ],
)
def test_a_broken_field_is_named(field: str, value: Any) -> None:
    """What the recorder could not store, or not read, is refused by name."""
    with pytest.raises(MalformedMessage, match=f"event: .*{field}"):
        parse_event(envelope(**{field: value}))


@pytest.mark.parametrize("payload", [None, [], "x", 5, [SECRET], {}])
def test_what_is_no_event_at_all_is_refused(payload: Any) -> None:
    """Any JSON value may arrive on the queue."""
    with pytest.raises(MalformedMessage):
        parse_event(payload)


@pytest.mark.parametrize("field", sorted(envelope()))
@pytest.mark.parametrize("wrap", [lambda secret: secret, lambda secret: [secret], lambda secret: {"a": {"b": secret}}])
def test_an_error_never_quotes_a_value(field: str, wrap: Any) -> None:
    """Wherever the secret stands in a broken envelope, the message does not hold it."""
    with pytest.raises(MalformedMessage) as caught:
        parse_event({**envelope(**{field: wrap(SECRET)}), "id" if field != "id" else "subject": "broken"})
    assert SECRET not in str(caught.value)


@given(
    st.sampled_from(sorted(envelope())),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2),
)
def test_no_field_value_breaks_the_parser(field: str, value: Any) -> None:
    """Whatever a field holds, the answer is an event or ``MalformedMessage``."""
    try:
        parsed = parse_event(envelope(**{field: value}))
    except MalformedMessage:
        return
    assert uuid.UUID(parsed.id)
    assert uuid.UUID(parsed.subject)
