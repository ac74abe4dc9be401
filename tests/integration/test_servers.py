"""The local servers: they keep their data, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import amqp
import kombu
import psycopg2
import pytest
import redis

from stacks import provision
from stacks.processes import (
    Entry,
    LocalProcess,
    Ports,
    ProcessError,
    Record,
    free_port,
    poll,
    port_taken,
    start_ticks,
    wait_for,
)
from stacks.servers import Postgres, RabbitMQ, Redis, Server

S = TypeVar("S", bound=Server)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL for this file, below a folder that its system user may not enter."""
    provision.ensure(["postgres"])
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(stat.S_IRWXU)
    yield from _running(Postgres(closed / "postgres", durable=False, tied=True))


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for this file."""
    provision.ensure(["redis"])
    yield from _running(Redis(tmp_path_factory.mktemp("redis"), tied=True))


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ for this file."""
    provision.ensure(["rabbitmq"])
    yield from _running(RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), tied=True))


def _running(server: S) -> Iterator[S]:
    server.start()
    server.wait_ready()
    yield server
    server.stop()


def _crash(server: Server) -> None:
    """Kill a server from outside, as the kernel would, and start it again."""
    pid = server.process.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not server.running, 10, f"{server.name} is killed")
    server.start()
    server.wait_ready()


def _execute(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.mark.parametrize("end", ["crash", "kill", "stop"])
def test_postgres_keeps_what_was_committed(postgres: Postgres, end: str) -> None:
    """Rows of a finished transaction survive a crash, our kill and an orderly restart."""
    url = postgres.create_databases([f"ledger_{end}"])[f"ledger_{end}"]
    _execute(url, "CREATE TABLE payment (id integer)")
    _execute(url, "INSERT INTO payment VALUES (1), (2)")
    _end_and_start(postgres, end)
    assert _execute(url, "SELECT count(*) FROM payment") == [(2,)]


@pytest.mark.parametrize("end", ["crash", "kill", "stop"])
def test_redis_keeps_what_was_written(redis_server: Redis, end: str) -> None:
    """A key that was answered with OK survives a crash, our kill and an orderly restart."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.set(f"lease:{end}", "held")
    _end_and_start(redis_server, end)
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.get(f"lease:{end}") == b"held"


def test_rabbitmq_keeps_confirmed_messages(rabbitmq: RabbitMQ) -> None:
    """A confirmed message in a quorum queue survives kill -9 of the broker."""
    _publish(rabbitmq, "kept", "an order")
    wait_for(lambda: rabbitmq.on_disk("kept"), 10, "the queue is registered")
    _crash(rabbitmq)
    with kombu.Connection(rabbitmq.url) as connection:
        queue = kombu.Queue("kept", channel=connection.default_channel)
        assert poll(lambda: _body(queue) == "an order", timeout=20)


def test_a_deleted_virtual_host_comes_back_empty(rabbitmq: RabbitMQ) -> None:
    """Deleting the virtual host takes its queues along; the same user may use the new one."""
    _publish(rabbitmq, "gone", "an order")
    rabbitmq.delete_vhost()
    try:
        with pytest.raises(amqp.NotAllowed, match="vhost waybill not found"):
            _publish(rabbitmq, "gone", "an order")
    finally:
        rabbitmq.add_vhost()
    assert rabbitmq.queues() == {}
    _publish(rabbitmq, "gone", "an order")
    assert rabbitmq.queues() == {"gone": 1}


def test_a_further_user_has_only_the_rights_given(rabbitmq: RabbitMQ) -> None:
    """A user with rights on some names logs in and is refused another queue."""
    rabbitmq.add_user("guard", "secret", "^guard.*", "^guard.*", "^guard.*")
    url = rabbitmq.url.replace(rabbitmq.url.split("@")[0], "amqp://guard:secret")
    try:
        with kombu.Connection(url) as connection:
            kombu.Queue("guard.one", channel=connection.default_channel).declare()
            with pytest.raises(connection.channel_errors):
                kombu.Queue("orders", channel=connection.default_channel).declare()
    finally:
        rabbitmq.delete_user("guard")


def test_a_stopped_rabbitmq_leaves_no_process(rabbitmq: RabbitMQ) -> None:
    """After stop() broker, port mapper and helpers are gone and their ports are free."""
    pids = _with_descendants([process.pid for process in rabbitmq.processes])
    rabbitmq.ctl("list_vhosts")  # the tool must not leave a port mapper either
    rabbitmq.stop()
    try:
        assert poll(lambda: not any(start_ticks(pid) for pid in pids), timeout=10)
        assert not any(port_taken(rabbitmq.port + offset) for offset in range(3))
        assert not _processes_naming(str(rabbitmq.port + 2))
    finally:
        rabbitmq.start()
        rabbitmq.wait_ready()


def test_passwords_are_readable_by_their_owner_only(
    postgres: Postgres, redis_server: Redis, rabbitmq: RabbitMQ
) -> None:
    """Every file that holds a password has mode 0600."""
    files = [
        file
        for server in (postgres, redis_server, rabbitmq)
        for pattern in ("password*", "*.conf", "home/.erlang.cookie", "cookie")
        for file in server.folder.glob(pattern)
        if file.stat().st_size
    ]
    assert len(files) >= 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_killed_parent_takes_tied_processes_along(tmp_path: Path) -> None:
    """With `tied`, kill -9 of the starting process ends the child and the child's children."""
    script = (
        "import pathlib, signal, sys; from stacks.processes import LocalProcess\n"
        "child = LocalProcess('child', ['/bin/sh', '-c', 'sleep 600 & sleep 600'],"
        f" log=pathlib.Path({str(tmp_path / 'log')!r}), tied=True)\n"
        "child.start(); print(child.pid, flush=True); signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert poll(lambda: len(_with_descendants([pid])) >= 2, timeout=10)
        family = _with_descendants([pid])
        parent.kill()
    assert poll(lambda: not any(start_ticks(member) for member in family), timeout=10)


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    """stop() kills the whole group once its time is over."""
    command = ["/bin/sh", "-c", "trap '' TERM; echo ready; sleep 600 & wait; sleep 600"]
    process = LocalProcess("stubborn", command, log=tmp_path / "log", tied=True)
    process.start()
    wait_for(lambda: "ready" in process.log_tail(), 10, "the trap is set", process)
    family = _with_descendants([process.pid])
    process.stop(timeout=0.2)
    assert not process.running
    assert not any(start_ticks(member) for member in family)


def test_waiting_for_a_process_that_ends_shows_its_log(tmp_path: Path) -> None:
    """wait_for() does not wait out its time for a dead process, and says what it said last."""
    command = ["/bin/sh", "-c", "echo no such setting; exit 3"]
    process = LocalProcess("broken", command, log=tmp_path / "log", tied=True)
    process.start()
    with pytest.raises(ProcessError, match=r"the worker: its process ended(.|\n)*no such setting"):
        wait_for(lambda: False, 60, "the worker", process)
    assert process.wait(5) == 3
    process.kill()


def test_a_used_again_process_id_is_left_alone(tmp_path: Path) -> None:
    """A record ends a process only when its start time is the recorded one."""
    process = LocalProcess("bystander", ["sleep", "600"], log=tmp_path / "log", tied=True)
    process.start()
    pid = process.pid
    assert pid
    record = Record(tmp_path / "record")
    record.add("bystander", pid)
    (known,) = record.entries
    stale = Entry(known.name, pid, known.ticks - 1, known.signal)
    record.path.write_text(record.path.read_text().replace(str(known.ticks), str(stale.ticks)))
    record.end(first=1, timeout=1)
    assert process.running
    record.add("bystander", pid)
    record.end(first=1, timeout=5)
    assert not process.running
    process.kill()


def test_a_missing_program_gives_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who may not install reads which program is missing and the command that installs it."""
    monkeypatch.setattr(provision, "FOLDERS", ())
    monkeypatch.setattr(provision, "can_install", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(provision.ProvisionError) as caught:
        provision.ensure(["redis"])
    text = str(caught.value)
    assert "redis-server not found" in text
    assert "apt-get install --no-install-recommends redis-server" in text
    assert "\n" not in text


def test_a_taken_port_gives_one_line(rabbitmq: RabbitMQ) -> None:
    """The message names the port and the variable that changes it."""
    ports = Ports.chosen({"UP_RABBITMQ_PORT": str(rabbitmq.port - 2)})
    with pytest.raises(ProcessError, match=f"^port {rabbitmq.port} .*UP_RABBITMQ_PORT.*$"):
        ports.require_free()


def test_a_variable_that_is_no_port_is_refused() -> None:
    """A typing error in a port's variable is named, not taken."""
    with pytest.raises(ProcessError, match=r"^UP_REDIS_PORT=six is no port"):
        Ports.chosen({"UP_REDIS_PORT": "six"})


def test_free_ports_are_neighbours_and_free() -> None:
    """free_port(3) gives the first of three ports that can be bound."""
    first = free_port(3)
    assert not any(port_taken(first + offset) for offset in range(3))


def _end_and_start(server: Server, end: str) -> None:
    if end == "crash":
        _crash(server)
    elif end == "kill":
        server.kill()
        server.start()
        server.wait_ready()
    else:
        server.restart()


def _publish(server: RabbitMQ, name: str, body: str) -> None:
    options = {"confirm_publish": True}
    with kombu.Connection(server.url, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        queue = kombu.Queue(name, queue_arguments={"x-queue-type": "quorum"})
        connection.Producer(auto_declare=False).publish(
            body, routing_key=name, declare=[queue], retry=False, delivery_mode=2
        )


def _body(queue: kombu.Queue) -> str | None:
    message = queue.get(no_ack=True)
    return message.payload if message else None


def _with_descendants(pids: list[int | None]) -> set[int]:
    """The given processes and what they started, by /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid for pid in pids if pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _processes_naming(text: str) -> list[str]:
    """The command lines that hold `text` as an argument."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in lines if text in line.split("\0")]
