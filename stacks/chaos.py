"""The proof by faults: ``python -m stacks.chaos``, or ``make chaos``.

Sends orders over HTTP to the real stack while processes are killed, servers restarted, queues deleted and the payment
provider fails; then lets it come to rest and checks that no order was lost and nobody charged twice. Exit code 0
only when every promise held, 1 when one was broken or the time was over. What is killed and restarted is this run's
own: servers and processes on free ports, with their data in a folder of their own.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import kombu
import urllib3
from rich.console import Console

from shared.contracts.queues import dead_letter_queue
from shared.contracts.saga import Status
from shared.errors import Transient
from stacks import chaos_check, chaos_faults, chaos_load, provision
from stacks.chaos_faults import Rig
from stacks.chaos_load import Load
from stacks.chaos_report import Display, Report, figures_of, log_events, percentile, show, timelines
from stacks.chaos_scenarios import CONTROL, FULL, SMALL, Scenario
from stacks.local import ROOT, UNLIMITED, LocalStack
from stacks.processes import ProcessError
from workers.orders.status import FINAL

_MINUTE = 60
_FOR_THE_CHECK = 15  # seconds kept of the time allowed
_READY = 60  # seconds for every process to work again after the faults
_REQUEUE_CALLS = 6
_REQUEUE_PAUSE = 5.0  # seconds for what was put back to be worked on
_TOOL = 60  # seconds
_LOOK_EVERY = 0.5
_QUIET_LOOKS = 4  # looks at empty queues in a row
_MEETING = 20.0  # seconds that the provider's faults outlast the load at most
_FEW_PENDING = 0.1  # share of the orders


class Campaign:
    """One run: a stack, the faults, the load, the wait, the check."""

    def __init__(self, scenario: Scenario, folder: Path, seed: int, display: Display) -> None:
        self.scenario, self.seed, self.display = scenario, seed, display
        self.deadline = time.monotonic() + scenario.minutes * _MINUTE - _FOR_THE_CHECK
        self.stack = LocalStack(folder, durable=scenario.name == FULL.name, extra={**UNLIMITED, **scenario.environment})
        self.rig = Rig(self.stack)
        self.requeues: list[dict[str, Any]] = []
        self.statuses: Counter[str] = Counter({Status.PENDING: scenario.orders})

    def run(self) -> Report:
        """Run it; raises ``ProcessError`` where the stack cannot be started or a fault cannot be done."""
        try:
            self._start()
            with self.rig.supervised():
                load = self._load_under_faults()
                self._calm_down()
                self._wait_settled()
                return self._report(load)
        finally:
            self._end()

    def _start(self) -> None:
        self.display.say("starting RabbitMQ, Redis, PostgreSQL and the application")
        self.stack.start_servers()
        self.stack.prepare_databases()
        if not self.scenario.guarded:
            command = [sys.executable, "-m", "stacks.chaos_unguarded", "worker", "-n", "payments@%h"]
            self.stack.processes["payments"] = self.stack.process("payments", command)
        self.stack.start_app(chaos_faults.PROCESSES)

    def _load_under_faults(self) -> Load:
        random = Random(self.seed)  # noqa: S311 - a schedule, not a secret
        strikes = chaos_faults.schedule(self.scenario.counts, self.scenario.seconds, random)
        errands = chaos_load.plan(self.scenario.orders, self.scenario.cancelled, self.scenario.seconds, strikes, random)
        self._provider(**self.scenario.rates, seed=self.seed)
        self.display.say(f"sending {len(errands)} orders, {len(strikes)} faults to come")
        started = time.monotonic()
        load = Load(self.stack.api_url, errands, started=started, give_up_at=self.deadline)
        load.start()
        try:
            faults = chaos_faults.carry_out(self.rig, strikes, started, self.display.say)
            while not all(future.done() for future in faults):
                self._look()
            for future in faults:
                future.result()
            load.finish()
            self._let_orders_meet_the_provider()
        finally:
            load.stop()
        return load

    def _let_orders_meet_the_provider(self) -> None:
        """Keep the provider's faults until most orders have been there: on a busy machine they come late."""
        until = min(self.deadline, time.monotonic() + _MEETING)
        few = _FEW_PENDING * self.scenario.orders
        while self.statuses[Status.PENDING] > few and time.monotonic() < until:
            self._look()

    def _calm_down(self) -> None:
        """End the faults: the provider works, every process runs; then the operator's one command."""
        self._provider(error_rate=0, timeout_after_rate=0, decline_rate=0)
        self.rig.wait_ready(_READY)
        self.display.say("the faults are over; putting the dead letters back")
        self._requeue()

    def _wait_settled(self) -> None:
        """Wait until every order ended and nothing is on its way, or the time is over."""
        quiet, requeued_at = 0, time.monotonic()
        while quiet < _QUIET_LOOKS and time.monotonic() < self.deadline:
            settled = self._look()
            counts = self._messages()
            dead = sum(count for queue, count in counts.items() if queue.endswith(".dlq"))
            quiet = quiet + 1 if settled and not sum(counts.values()) else 0
            may_requeue = len(self.requeues) < _REQUEUE_CALLS and time.monotonic() - requeued_at > _REQUEUE_PAUSE
            if dead and may_requeue:
                self._requeue()
                requeued_at = time.monotonic()

    def _look(self) -> bool:
        """Show where the orders stand; return whether all have ended and nothing is left to do."""
        time.sleep(_LOOK_EVERY)
        try:
            statuses, left = chaos_check.progress(self.stack)
        except Transient:
            return False  # PostgreSQL is being restarted
        self.statuses = statuses
        shown = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        self.display.progress(f"{shown or 'no order yet'}; {left} to settle")
        return not left and statuses.keys() <= FINAL

    def _messages(self) -> dict[str, int]:
        """Count the messages waiting in every queue, those put off included; the audit stream is no queue."""
        with kombu.Connection(self.stack.rabbitmq.url) as connection:
            declare = connection.channel().queue_declare
            return {name: declare(name, passive=True).message_count for name in chaos_faults.queue_names()}

    def _requeue(self) -> None:
        command = [sys.executable, "-m", "celery", "-A", "workers", "dlq", "requeue", "--all", "--json"]
        done = subprocess.run(  # noqa: S603 - fixed
            command,
            env=self.stack.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TOOL,
        )
        output = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        last = output[-1] if output else ""
        self.requeues.append(
            json.loads(last) if done.returncode == 0 else {"exit code": done.returncode, "error": last}
        )

    def _report(self, load: Load) -> Report:
        self.display.say("checking")
        evidence = chaos_check.gather(
            self.stack,
            accepted=load.accepted.keys(),
            cancelled=load.cancelled,
            dead_letters=_dead_letters(self.stack.rabbitmq.url),
            restless=[f"{queue}: {count}" for queue, count in self._messages().items() if count],
            ended=self.rig.ended,
        )
        findings = chaos_check.judge(evidence)
        logged = log_events(self.stack.folder / "log")
        answers = sorted(load.accepted.values())
        figures = {
            **figures_of(evidence),
            "orders swept": sum(count for name, count in logged.items() if name.endswith(": order_swept")),
            "orders not sent in time": load.unsent,
            "cancellations refused": len(load.refused_cancellations),
            "seconds until 202, p50": percentile(answers, 0.5),
            "seconds until 202, p99": percentile(answers, 0.99),
            "seconds until 202, longest": percentile(answers, 1),
        }
        held = not any(findings.values()) and not load.unsent and time.monotonic() < self.deadline + _FOR_THE_CHECK
        return Report(
            seed=self.seed,
            scenario=self.scenario.name,
            ok=held if self.scenario.guarded else bool(findings[chaos_check.CHARGED_TWICE]),
            findings=findings,
            figures=figures,
            faults=dict(sorted(self.rig.done.items())),
            http_errors=dict(load.errors),
            requeues=self.requeues,
            timelines=timelines(evidence, findings),
            log_events=dict(logged.most_common()),
        )

    def _provider(self, **rates: float) -> None:
        urllib3.request("POST", f"{self.stack.psp_url}/faults", json=rates, timeout=10)

    def _end(self) -> None:
        """Nothing is kept, so nothing needs an orderly end."""
        for process in self.stack.processes.values():
            process.kill()
        for server in self.stack.servers:
            server.kill()
            server.stop()


def _dead_letters(url: str) -> list[str]:
    """Look at every dead letter without taking it: queue, task, order, and why it died."""
    found = []
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        for queue in map(dead_letter_queue, chaos_faults.QUEUES):
            while (message := channel.basic_get(queue, no_ack=False)) is not None:
                headers = message.headers or {}
                death = (headers.get("x-death") or [{}])[0]
                found.append(f"{queue}: {headers.get('task')} {headers.get('argsrepr')} {death.get('reason')}")
    return found


def main() -> int:
    """The command line."""
    options = _options()
    scenario = CONTROL if options.negative_control else SMALL if options.small else FULL
    if options.orders:
        scenario = replace(scenario, orders=options.orders)
    if options.minutes:
        scenario = replace(scenario, minutes=options.minutes)
    folder = Path(tempfile.mkdtemp(prefix="waybill-chaos-"))
    console = Console(stderr=options.json == "-", soft_wrap=not sys.stdout.isatty())
    console.print(
        f"Fault run, {scenario.name}: seed {options.seed}, at most {scenario.minutes:g} minutes, folder {folder}"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    display = Display(console)
    try:
        with display.shown():
            report = Campaign(scenario, folder, options.seed, display).run()
    except (ProcessError, provision.ProvisionError) as error:
        console.print(f"{error}\nThe logs are in {folder}.", markup=False)
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    show(report, console)
    _write(options.json, report)
    if report.ok:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"The logs and the ledger are in {folder}.")
    return 0 if report.ok else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stacks.chaos", description=__doc__)
    parser.add_argument("--orders", type=_at_least_one, help="how many to send (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule: what is broken, sent and cancelled when")
    parser.add_argument("--minutes", type=float, help="the longest that the run may take (8)")
    parser.add_argument("--json", metavar="FILE", help="write the result there as JSON, - for the standard output")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="100 orders, each fault once")
    size.add_argument(
        "--negative-control",
        action="store_true",
        help="without the guards against charging twice: succeeds when the check finds double charges",
    )
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of orders, 1 or more")
    return int(text)


def _write(target: str | None, report: Report) -> None:
    if target == "-":
        print(report.to_json())
    elif target:
        Path(target).write_text(report.to_json() + "\n")


if __name__ == "__main__":
    sys.exit(main())
