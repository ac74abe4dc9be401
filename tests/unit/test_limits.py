"""How often a caller may ask, in one process: a bucket for each caller and kind, headers, and what a token grants."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from limits.errors import StorageError

from api import create_app, limits
from tests.conftest import UseSettings
from tests.support import json_logs, wait_until
from tests.tokens import KEY, bearer

LIST, DETAIL = "/v1/orders", f"/v1/orders/{uuid.uuid4()}"


@pytest.fixture
def client(house: UseSettings) -> FlaskClient:
    """The API with small limits."""
    house(**KEY, rate_limit_create="2/minute", rate_limit_list="3/minute", rate_limit_detail="4/minute")
    return create_app().test_client()


def statuses(client: FlaskClient, path: str, count: int, **changes: Any) -> list[int]:
    """Ask several times with a token; return the statuses."""
    return [client.get(path, headers=bearer(**changes)).status_code for _ in range(count)]


def test_a_caller_may_ask_so_often_and_then_waits(client: FlaskClient) -> None:
    """The limit, then 429 with the seconds to wait and a problem document."""
    assert statuses(client, LIST, 3) == [200] * 3
    answer = client.get(LIST, headers=bearer())
    assert (answer.status_code, answer.json["detail"]) == (429, "TOO_MANY_REQUESTS")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_every_answer_tells_what_is_left(client: FlaskClient) -> None:
    """Seconds to the reset, not a date; ``Retry-After`` only where somebody has to wait."""
    told = [client.get(LIST, headers=bearer()).headers for _ in range(4)]
    assert [int(each["RateLimit-Limit"]) for each in told] == [3] * 4
    assert [int(each["RateLimit-Remaining"]) for each in told] == [2, 1, 0, 0]
    assert all(1 <= int(each["RateLimit-Reset"]) <= 60 for each in told)
    assert ["Retry-After" in each for each in told] == [False, False, False, True]


def test_callers_and_kinds_have_their_own_buckets(client: FlaskClient) -> None:
    """Nobody waits for somebody else, and who lists too often may still look at an order."""
    assert statuses(client, LIST, 4)[-1] == 429
    assert statuses(client, LIST, 1, sub="bob") == [200]
    assert statuses(client, DETAIL, 1) == [404]


def test_views_of_one_kind_share_a_bucket(client: FlaskClient) -> None:
    """An order and its timeline are both details."""
    assert statuses(client, DETAIL, 2) + statuses(client, f"{DETAIL}/events", 3) == [404] * 4 + [429]


def test_bad_requests_count_as_well(client: FlaskClient) -> None:
    """A client in a loop is stopped whatever it sends."""
    sent = [client.post(LIST, json={}, headers=bearer()).status_code for _ in range(3)]
    assert sent == [400, 400, 429]


def test_a_token_may_grant_more(client: FlaskClient) -> None:
    """The claim replaces the setting for the kind it names, and only for that."""
    granted = {"rate_limits": {"list": "6 per minute"}}
    assert statuses(client, LIST, 7, **granted) == [200] * 6 + [429]
    assert statuses(client, DETAIL, 5, **granted) == [404] * 4 + [429]


@pytest.mark.parametrize(
    "claim",
    [{"list": "often"}, {"list": 100}, {"list": "0/minute"}, {"other": "9/minute"}, "9/minute", 7, [1], {"list": None}],
)
def test_a_malformed_grant_is_ignored_with_a_warning(client: FlaskClient, claim: Any) -> None:
    """The caller is served within the usual limits; the log says why."""
    with json_logs() as lines:
        assert statuses(client, LIST, 4, rate_limits=claim) == [200] * 3 + [429]
        assert {line["subject"] for line in lines() if line["event"] == "rate_limits_claim_ignored"} == {"alice"}


def test_failed_authentication_is_counted_by_address(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing ends in 429; other addresses, and good tokens from the same address, go on."""
    monkeypatch.setattr(limits, "_FAILURES", "5/minute")
    guesses = [client.get(LIST, headers=bearer("guess")) for _ in range(7)]
    assert [each.status_code for each in guesses] == [401] * 5 + [429] * 2
    assert int(guesses[-1].headers["Retry-After"]) >= 1
    elsewhere = client.get(LIST, headers=bearer("guess"), environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert elsewhere.status_code == 401
    assert statuses(client, LIST, 1) == [200]


def test_requests_that_find_redis_gone_at_once_are_all_served(
    house: UseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask-Limiter falls back for the first of them only, and raises for the others."""
    house(**KEY, redis_url="redis://127.0.0.1:1/0")
    app = create_app()
    (limiter,) = app.extensions["limiter"]
    both, first = threading.Barrier(2), threading.Semaphore(1)

    def lost(*_: Any, **__: Any) -> bool:
        both.wait(10)
        if not first.acquire(blocking=False):
            wait_until(lambda: limiter._storage_dead)
        raise StorageError(ConnectionError("gone"))

    monkeypatch.setattr(limiter.limiter, "hit", lost)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(app.test_client().get, LIST, headers=bearer()) for _ in range(2)]
    assert [answer.result().status_code for answer in answers] == [200, 200]


def test_probes_are_not_limited(client: FlaskClient) -> None:
    """A probe needs no token and tells of no limit."""
    for path in ("/livez", "/readyz", "/health/"):
        answers = [client.get(path) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {200}
        assert "RateLimit-Limit" not in answers[0].headers
