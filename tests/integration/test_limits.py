"""Limits, keys and probes of the API as it is run: several gunicorn processes, a real Redis, and that Redis gone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from http import HTTPStatus

import pytest
import urllib3

from stacks.processes import free_port
from stacks.servers import Server
from tests.integration.nodes import Fleet, eventually, silent, stopped
from tests.support import BODY
from tests.tokens import ISSUER, SECRET, bearer

LIMIT = 10
PROCESSES = 2
ALL = 30  # requests, enough for every process to see more than its share
VARIABLES = {
    "AUTH_DISABLED": "0",
    "JWT_SECRET": SECRET,
    "JWT_ISSUER": ISSUER,
    "RATE_LIMIT_LIST": f"{LIMIT}/hour",
    "RATE_LIMIT_DETAIL": "2/second",
    "WEB_CONCURRENCY": str(PROCESSES),
}


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The API with a key and small limits."""
    with fleet.running("api", **VARIABLES):
        yield fleet


def ask(fleet: Fleet, subject: str, path: str = "/v1/orders") -> urllib3.BaseHTTPResponse:
    """Ask on a connection of its own, so that any process may answer."""
    headers = {**bearer(sub=subject), "Connection": "close"}
    return urllib3.request("GET", f"{fleet.api_url}{path}", headers=headers, timeout=10, retries=False)


def statuses(fleet: Fleet, subject: str, count: int = ALL) -> Counter[int]:
    """Ask often, several at a time; count the statuses."""
    with ThreadPoolExecutor(8) as pool:
        return Counter(answer.status for answer in pool.map(lambda _: ask(fleet, subject), range(count)))


def readiness(fleet: Fleet) -> tuple[int, dict[str, str], float]:
    """Probe; return status, checks and how long it took."""
    started = time.monotonic()
    answer = urllib3.request("GET", f"{fleet.api_url}/readyz", timeout=10, retries=False)
    return answer.status, answer.json()["checks"], time.monotonic() - started


def back(fleet: Fleet, subject: str) -> Callable[[], bool]:
    """The condition that the processes count together again, seen by callers who are new each time."""
    numbers = iter(range(1000))
    return lambda: statuses(fleet, f"{subject}{next(numbers)}")[HTTPStatus.OK] == LIMIT


def test_all_processes_count_together(running: Fleet) -> None:
    """Exactly as many answers as one process would give, however many serve."""
    expected = {HTTPStatus.OK: LIMIT, HTTPStatus.TOO_MANY_REQUESTS: ALL - LIMIT}
    assert statuses(running, "together") == expected


def test_who_waits_as_told_is_served(running: Fleet) -> None:
    """``Retry-After`` is true."""
    path = "/v1/orders/00000000-0000-4000-8000-000000000000"
    answers = [ask(running, "patient", path) for _ in range(4)]
    refused = next(answer for answer in answers if answer.status == HTTPStatus.TOO_MANY_REQUESTS)
    wait = int(refused.headers["Retry-After"])
    assert wait == 1
    until = time.monotonic() + wait
    eventually(lambda: time.monotonic() >= until, "the time is over")
    assert ask(running, "patient", path).status == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("outage", [stopped, silent])
def test_without_redis_each_process_counts_for_itself(
    running: Fleet, outage: Callable[[Server], AbstractContextManager[None]]
) -> None:
    """Never a 500: limits hold, once in each process; no answer takes long. Then they count together again."""
    name = outage.__name__
    eventually(back(running, f"before-{name}"), "the processes count together")
    with outage(running.redis):
        assert statuses(running, f"{name}-at-once", LIMIT) == {HTTPStatus.OK: LIMIT}
        took = []
        for number in range(ALL):
            started = time.monotonic()
            assert ask(running, f"{name}{number}").status == HTTPStatus.OK
            took.append(time.monotonic() - started)
        counted = statuses(running, name)
        status, checks, probe = readiness(running)
    assert set(counted) == {HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS}
    assert LIMIT <= counted[HTTPStatus.OK] <= PROCESSES * LIMIT
    assert max(took) < 0.9
    assert sorted(took)[len(took) // 2] < 0.2
    assert (status, checks["redis"], checks["database"]) == (HTTPStatus.OK, "unreachable", "ok")
    assert probe < 2
    eventually(back(running, f"after-{name}"), "the processes count together again", timeout=90)


def test_a_header_makes_no_https(running: Fleet) -> None:
    """gunicorn by itself would believe any local client that it came by HTTPS."""
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "on"}
    answer = urllib3.request("GET", f"{running.api_url}/livez", headers=headers, timeout=10, retries=False)
    assert (answer.status, answer.headers["X-Frame-Options"]) == (HTTPStatus.OK, "DENY")
    assert "Strict-Transport-Security" not in answer.headers


def test_whoever_asks_sees_only_their_own_orders(running: Fleet) -> None:
    """Another's order is not there: neither to see, nor its timeline, nor to cancel."""
    placed = urllib3.request(
        "POST", f"{running.api_url}/v1/orders", headers=bearer(sub="owner"), json=BODY, timeout=10, retries=False
    )
    assert placed.status == HTTPStatus.ACCEPTED, placed.data
    path = placed.headers["Location"].partition("/v1")[2]
    url = f"{running.api_url}/v1{path}"

    def seen_by(method: str, suffix: str, **claims: str) -> int:
        headers = bearer(rate_limits={"detail": "100/second", "create": "100/second"}, **claims)
        return urllib3.request(method, url + suffix, headers=headers, timeout=10, retries=False).status

    ways = [("GET", ""), ("GET", "/events"), ("POST", "/cancel")]
    assert [seen_by(*way, sub="stranger") for way in ways] == [HTTPStatus.NOT_FOUND] * 3
    operator = {"sub": "operator", "scope": "orders:read orders:write ops"}
    assert [seen_by(*way, **operator) for way in ways] == [HTTPStatus.OK, HTTPStatus.OK, HTTPStatus.ACCEPTED]
    assert seen_by("GET", "", sub="owner") == HTTPStatus.OK


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"AUTH_DISABLED": "0"}, "JWT_SECRET"),
        ({"AUTH_DISABLED": "0", "JWT_SECRET": "short", "JWT_ISSUER": ISSUER}, "JWT_SECRET"),
        ({"AUTH_DISABLED": "1", "API_HOST": "0.0.0.0"}, "API_HOST"),  # noqa: S104
        ({"RATE_LIMIT_CREATE": "often"}, "RATE_LIMIT_CREATE"),
    ],
)
def test_the_api_does_not_start_without_a_key(fleet: Fleet, variables: dict[str, str], named: str) -> None:
    """One line that names the variable, no traceback, exit code 1."""
    node = fleet.node("api", **variables, PORT=str(free_port()))
    node.container.process.log = node.container.process.log.with_name(f"refused-{named}-{len(variables)}.log")
    node.container.start()
    assert node.container.process.wait(60) == 1
    (line,) = node.logs().strip().splitlines()
    assert line.startswith("api: ")
    assert named in line
