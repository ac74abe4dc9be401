"""The fleet in containers, really run: ``python -m stacks.compose_run``, or ``make compose-test``.

Brings docker-compose.yml up under a name of its own, sends orders while every kind of container is killed, a worker is
scaled and every service is restarted, stops and starts the whole project, and compares what the orders say with the
payment provider's ledger. Exit code 0 only when every order is settled, the money agrees, and no client saw an error
but 503 with Retry-After.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from shared.contracts.queues import EVENTS_QUEUE, Queue, dead_letter_queue
from stacks import compose, compose_confines
from stacks.compose import PROCESSES, SERVERS, Project
from stacks.compose_load import Client, Load
from stacks.processes import ProcessError, tail
from stacks.reckoning import OrderAccount, reckon
from workers.orders.status import FINAL

_PER_SECOND = 1.5  # orders
_SETTLE = 300  # seconds
_SCALED = 3
_GATEWAY_BACK = 60  # seconds
_LAST = 20  # orders after the whole project was stopped and started


class Run:
    """One run on a project that is already named and has its secrets."""

    def __init__(self, project: Project, orders: int) -> None:
        self.project, self.wanted = project, orders
        self.client = Client(project.api_url, project.secret("jwt_secret"), project.variables["JWT_ISSUER"])
        self.accepted: list[str] = []
        self.lost = 0
        self._began = time.monotonic()

    def run(self) -> list[str]:
        """Run it all; return what did not hold."""
        self._do("starting the fleet", lambda: self.project.compose("up", "-d", "--no-build"))
        self._do("waiting until every container is well", self.project.wait_healthy)
        self._say("looking at what the containers may do")
        breaches = compose_confines.breaches(self.project)
        with self._orders(self.wanted):
            self._crash_everything()
            self._do(f"scaling payments to {_SCALED}", self._scale)
            self._restart_everything()
        self._do("stopping the whole project", lambda: self.project.compose("stop", "-t", "60"))
        self._do("starting it again", lambda: self.project.compose("up", "-d", "--no-build"))
        self._do("waiting until every container is well", self.project.wait_healthy)
        with self._orders(_LAST):
            pass
        return [*breaches, *self._settled(), *self._reckoned()]

    def _crash_everything(self) -> None:
        for service in (*PROCESSES, *SERVERS):
            self._say(f"killing {service}")
            with self._door_closed(service == "gateway"):
                self.project.crash(service)
                if service == "gateway":
                    self._wait_for_the_door()
            if service in (*SERVERS, "api"):  # two at once may be more than clients should stand
                self.project.wait_healthy(service)
        self.project.wait_healthy()

    def _restart_everything(self) -> None:
        for service in (*PROCESSES, *SERVERS):
            if service == "gateway":  # it takes up its configuration without closing the door
                self._do("reloading gateway", lambda: self.project.compose("kill", "-s", "USR2", "gateway"))
            else:
                self._say(f"restarting {service}")
                self.project.restart(service)
        self.project.wait_healthy()

    def _scale(self) -> None:
        self.project.compose("up", "-d", "--no-build", "--no-recreate", "--scale", f"payments={_SCALED}", "payments")
        if len(self.project.containers("payments")) != _SCALED:
            raise ProcessError(f"payments were not scaled to {_SCALED}")
        self.project.wait_healthy("payments")

    @contextmanager
    def _orders(self, least: int) -> Iterator[None]:
        """Send orders during the block, and afterwards until there are enough."""
        load = Load(self.client, _PER_SECOND)
        try:
            yield
            while len(load.accepted) + load.lost < least:
                time.sleep(1)
        finally:
            load.finish()
        self.accepted += load.accepted
        self.lost += load.lost

    @contextmanager
    def _door_closed(self, closed: bool) -> Iterator[None]:
        if closed:
            self.client.door_closed.set()
        yield
        self.client.door_closed.clear()

    def _wait_for_the_door(self) -> None:
        until = time.monotonic() + _GATEWAY_BACK
        while time.monotonic() < until:
            try:
                urllib3.request("GET", f"{self.project.api_url}/livez", timeout=2, retries=False)
            except urllib3.exceptions.HTTPError:
                time.sleep(0.2)
            else:
                time.sleep(1)  # for requests that met the closed door meanwhile
                return
        raise ProcessError("the gateway did not come back")

    def _settled(self) -> list[str]:
        """Wait until every order ended and nothing is in a queue; return what did not."""
        until = time.monotonic() + _SETTLE
        while time.monotonic() < until:
            statuses = Counter(str(order["status"]) for order in self.client.orders())
            queues = self._messages()
            self._say(f"{dict(statuses)}, messages {queues or 'none'}")
            if not queues and statuses.keys() <= FINAL:
                return []
            time.sleep(5)
        return [f"not settled: {dict(statuses)}, messages {queues}"]

    def _messages(self) -> dict[str, int]:
        command = ["exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_queues", "-p", "waybill", "--formatter=json"]
        rows = json.loads(self.project.compose(*command, "name", "messages"))
        watched = {*Queue, EVENTS_QUEUE}
        watched |= {dead_letter_queue(name) for name in watched}
        return {row["name"]: row["messages"] for row in rows if row["messages"] and row["name"] in watched}

    def _reckoned(self) -> list[str]:
        self._say("comparing with the provider's ledger")
        orders = {order["id"]: order for order in self.client.orders()}
        timelines: dict[str, Any] = {each: self.client.get(f"/v1/orders/{each}/events")["results"] for each in orders}
        ledger = urllib3.request("GET", f"{self.project.psp_url}/ledger", retries=False).json()["entries"]
        accounts = [OrderAccount.from_api(order, timelines[each]) for each, order in orders.items()]
        self._say(f"{len(orders)} orders, {len(ledger)} ledger entries, answers {dict(self.client.answers)}")
        return [
            *reckon(accounts, ledger).differences,
            *(f"accepted and lost: {each}" for each in self.accepted if each not in orders),
            *(f"placed by no client: {each}" for each in orders if each not in self.accepted),
            *(f"a client saw: {error}" for error in self.client.errors),
            *([f"{self.lost} orders could not be placed"] if self.lost else []),
        ]

    def _do(self, what: str, action: Callable[[], object]) -> None:
        self._say(what)
        action()

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m stacks.compose_run", description=__doc__)
    parser.add_argument("--orders", type=int, default=200, help="how many at least (200)")
    parser.add_argument("--keep-images", action="store_true", help="do not build the images anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    folder = Path(tempfile.mkdtemp(prefix="waybill-compose-"))
    project = Project(folder.name, folder)
    try:
        if not options.keep_images:
            compose.build()
        project.prepare()
        findings = Run(project, options.orders).run()
    except KeyboardInterrupt:
        return _end(project, ["interrupted"])
    except (ProcessError, TimeoutError) as error:
        return _end(project, [str(error)])
    return _end(project, findings)


def _end(project: Project, findings: list[str]) -> int:
    """Say what was found, take everything away; the logs stay when something was."""
    for finding in findings:
        print(f"BROKEN: {finding}")
    log = project.folder / "log"
    if findings:
        log.write_text(project.compose("logs", "--no-color", "-t", check=False))
        print(f"The logs are in {log}; they end:\n{tail(log, 15)}")
    project.take_away()
    if not findings:
        shutil.rmtree(project.folder)
        print("Every order is settled, the money agrees, and no client saw an error but 503 with Retry-After.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
