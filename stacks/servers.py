"""PostgreSQL, Redis and RabbitMQ as child processes on the loopback, their data in a folder.

A server can be killed and started again on the same data. None of them uses or touches the
system's own services, configuration or data.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import amqp
import psycopg2
import redis
from psycopg2 import sql

from stacks.processes import (
    LocalProcess,
    ProcessError,
    free_port,
    run_tool,
    wait_for,
    write_private,
)
from stacks.provision import executable

READY_SECONDS = 60


class Server:
    """What the three have in common: processes, started in order and ended in reverse.

    `durable=False` gives up surviving a power cut, for speed; a killed server loses nothing.
    `tied` servers end with this Python process (see LocalProcess).
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, port: int | None = None, *, durable: bool = True, tied: bool = False) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.durable = durable
        self.tied = tied
        self.processes: list[LocalProcess] = []

    @property
    def process(self) -> LocalProcess:
        """The server itself, the last one of its processes."""
        return self.processes[-1]

    @property
    def running(self) -> bool:
        return bool(self.processes) and self.process.running

    def start(self) -> None:
        """Start the server without waiting for it; creates its data on the first start."""
        if not self.processes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.processes = self._prepare()
        for process in self.processes:
            process.start()

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait until a client can log in; raises ProcessError with the log's end."""
        wait_for(self._answers, timeout, f"{self.name} on port {self.port}", self.process)

    def stop(self, timeout: float = 30) -> None:
        """End the server in an orderly way, after `timeout` seconds by force."""
        for process in reversed(self.processes):
            process.stop(timeout)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.processes:
            self.process.kill()

    def restart(self) -> None:
        """Stop it if it runs, start it and wait until it is ready."""
        self.stop()
        self.start()
        self.wait_ready()

    def _prepare(self) -> list[LocalProcess]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _process(
        self, name: str, command: list[str | Path], environment: Mapping[str, str], **more: Any
    ) -> LocalProcess:
        log = self.folder / f"{name}.log"
        options = {"log": log, "cwd": self.folder, "tied": self.tied, **more}
        return LocalProcess(name, command, environment=environment, **options)

    def _secret(self, name: str = "password") -> str:
        """A random password, made once and kept in a file only its owner reads."""
        path = self.folder / name
        if not path.exists():
            write_private(path, secrets.token_hex(16))
        return path.read_text()


class Postgres(Server):
    """A PostgreSQL cluster with password log-in over TCP only."""

    name = "postgres"
    user: ClassVar[str] = "waybill"

    def create_databases(self, names: Iterable[str]) -> dict[str, str]:
        """A role and a database of its own per name, made where missing; returns their URLs."""
        urls = {name: self.url(name) for name in names}
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT rolname FROM pg_roles")
            roles = {row[0] for row in cursor.fetchall()}
            cursor.execute("SELECT datname FROM pg_database")
            databases = {row[0] for row in cursor.fetchall()}
            for name in urls.keys() - roles:
                password = sql.Literal(self._secret(f"password.{name}"))
                login = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                cursor.execute(login.format(sql.Identifier(name), password))
            for name in urls.keys() - databases:
                create = sql.SQL("CREATE DATABASE {0} OWNER {0}")
                cursor.execute(create.format(sql.Identifier(name)))
        return urls

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database made by `create_databases`."""
        password = self._secret(f"password.{database}")
        return f"postgresql+psycopg2://{database}:{password}@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> list[LocalProcess]:
        data = self.folder / "data"
        if not data.exists():
            self._create_cluster(data)
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        options |= {"max_connections": 200, "log_min_messages": "warning"}
        if not self.durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        command = [*_as_postgres(), executable("postgres"), "-D", data, *settings]
        # SIGINT is PostgreSQL's "fast" shutdown; SIGTERM would wait for every client to leave.
        return [self._process(self.name, command, _environment(), stop_signal=signal.SIGINT)]

    def _create_cluster(self, data: Path) -> None:
        """Create the data beside its place and move it there: an interrupted initdb leaves none."""
        new = data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(new, "postgres", "postgres")
        self._secret()
        options = ["--auth=scram-sha-256", f"--username={self.user}", "--encoding=UTF8"]
        options += ["--locale=C", f"--pwfile={self.folder / 'password'}"]
        options += [] if self.durable else ["--no-sync"]
        initdb = [*_as_postgres(), executable("initdb"), "-D", new, *options]
        run_tool(initdb, _environment(), self.folder)
        new.rename(data)

    def _answers(self) -> bool:
        try:
            with self._connection():
                return True
        except psycopg2.OperationalError:
            return False

    @contextlib.contextmanager
    def _connection(self) -> Iterator[psycopg2.extensions.connection]:
        """The administrator's connection, in autocommit as CREATE DATABASE needs it."""
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            password=self._secret(),
            dbname="postgres",
            connect_timeout=2,
        )
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()


class Redis(Server):
    """A Redis that logs every write, never evicts, and wants a password."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self._secret()}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> list[LocalProcess]:
        settings = {"bind": "127.0.0.1", "port": self.port, "requirepass": self._secret()}
        settings |= {"dir": ".", "daemonize": "no", "appendonly": "yes", "save": '""'}
        settings |= {"appendfsync": "everysec" if self.durable else "no"}
        settings |= {"maxmemory-policy": "noeviction", "loglevel": "warning"}
        config = self.folder / "redis.conf"
        write_private(config, "".join(f"{key} {value}\n" for key, value in settings.items()))
        return [self._process(self.name, [executable("redis-server"), config], _environment())]

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_connect_timeout=2, socket_timeout=2)
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            client.close()


class RabbitMQ(Server):
    """A one-node RabbitMQ with its own user, virtual host and Erlang port mapper (epmd).

    Takes the two ports after `port` as well: Erlang distribution and epmd. The management plugin
    runs only where a `management_port` is given.
    """

    name = "rabbitmq"
    user: ClassVar[str] = "waybill"
    vhost: ClassVar[str] = "waybill"
    node: ClassVar[str] = "waybill@localhost"

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        tied: bool = False,
        management_port: int | None = None,
    ) -> None:
        super().__init__(folder, port or free_port(3), durable=durable, tied=tied)
        self.management_port = management_port

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{self._secret()}@127.0.0.1:{self.port}/{self.vhost}"

    @property
    def management_url(self) -> str:
        """The management plugin's API."""
        return f"http://{self.user}:{self._secret()}@127.0.0.1:{self.management_port}/api/"

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl <arguments>` prints; raises ProcessError with its last line."""
        command: list[str | Path] = [executable("rabbitmqctl"), "--quiet", *arguments]
        return run_tool(command, self._environment(), self.folder)

    def delete_vhost(self) -> None:
        """Delete the virtual host with all its queues; clients are disconnected."""
        self.ctl("delete_vhost", self.vhost)

    def add_vhost(self) -> None:
        """Create the empty virtual host again, with the user's rights on it."""
        self.ctl("add_vhost", self.vhost)
        self.ctl("set_permissions", "-p", self.vhost, self.user, ".*", ".*", ".*")

    def add_user(self, name: str, password: str, *patterns: str) -> None:
        """A further user; `patterns` are what it may configure, write and read (default: all)."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "-p", self.vhost, name, *(patterns or (".*", ".*", ".*")))

    def delete_user(self, name: str) -> None:
        self.ctl("delete_user", name)

    def queues(self) -> dict[str, int]:
        """Every queue of the virtual host with its waiting messages, without those in hand.

        Asks each queue: the counts that rabbitmqctl prints are up to five seconds old.
        """
        table = json.loads(self.ctl("list_queues", "-p", self.vhost, "name", "exclusive", "--formatter=json"))
        with self._client() as client:
            channel = client.channel()
            names = [row["name"] for row in table if not row["exclusive"]]  # only their owner may ask those
            return {n: channel.queue_declare(n, passive=True).message_count for n in names}

    def on_disk(self, queue: str) -> bool:
        """Whether a quorum queue would survive a crash of the broker.

        RabbitMQ 3.10 writes its register of them up to a second after it said "declared"; a queue
        that a crash took off the register exists, but never answers again.
        """
        register = self.folder / "mnesia" / self.node / "quorum" / self.node / "names.dets"
        return f"{self.vhost}_{queue}".encode() in register.read_bytes()

    def consumers(self, queue: str) -> int:
        """How many consumers a queue has; 0 as well when it or the broker is missing."""
        try:
            with self._client() as client:
                return int(client.channel().queue_declare(queue, passive=True).consumer_count)
        except (OSError, amqp.AMQPError):
            return 0

    def _prepare(self) -> list[LocalProcess]:
        for name in ("home", "mnesia", "log", "conf.d"):
            (self.folder / name).mkdir(exist_ok=True)
        write_private(self.folder / "home/.erlang.cookie", self._secret("cookie"))
        write_private(self.folder / "rabbitmq.conf", self._configuration())
        plugins = "rabbitmq_management" if self.management_port else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        epmd: list[str | Path] = [executable("epmd"), "-port", str(self.port + 2), "-address", "127.0.0.1"]
        environment = self._environment()
        return [
            # Started first, or Erlang would start one as a daemon that nobody stops.
            self._process("epmd", epmd, environment),
            self._process(self.name, [executable("rabbitmq-server")], environment),
        ]

    def _configuration(self) -> str:
        settings = {
            "listeners.tcp.local": f"127.0.0.1:{self.port}",
            "default_user": self.user,  # instead of guest
            "default_pass": self._secret(),
            "default_vhost": self.vhost,
            "log.file": "false",
            "log.console": "true",
            "log.console.level": "warning",
        }
        if self.management_port:
            settings |= {"management.tcp.ip": "127.0.0.1"}
            settings |= {"management.tcp.port": str(self.management_port)}
        return "".join(f"{key} = {value}\n" for key, value in settings.items())

    def _environment(self) -> dict[str, str]:
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        ours = {
            "NODENAME": self.node,
            "MNESIA_BASE": self.folder / "mnesia",
            "LOG_BASE": self.folder / "log",
            "CONFIG_FILE": self.folder / "rabbitmq.conf",
            "CONFIG_FILES": self.folder / "conf.d",
            "CONF_ENV_FILE": self.folder / "rabbitmq-env.conf",
            "ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "PID_FILE": self.folder / "rabbitmq.pid",
            "DIST_PORT": self.port + 1,
            "SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} -start_epmd false",
            "CTL_ERL_ARGS": f"{loopback} -start_epmd false",
        }
        own = {"HOME": self.folder / "home", "ERL_EPMD_PORT": self.port + 2}
        # Makes the start script become the broker instead of waiting beside it.
        own |= {"ERL_EPMD_ADDRESS": "127.0.0.1", "RUNNING_UNDER_SYSTEMD": "true"}
        named = {f"RABBITMQ_{key}": value for key, value in ours.items()}
        return _environment() | {key: str(value) for key, value in (named | own).items()}

    def _answers(self) -> bool:
        try:
            with self._client():
                return True
        except (OSError, amqp.AMQPError):
            return False

    @contextlib.contextmanager
    def _client(self) -> Iterator[amqp.Connection]:
        account = {"userid": self.user, "password": self._secret(), "virtual_host": self.vhost}
        client = amqp.Connection(f"127.0.0.1:{self.port}", **account, connect_timeout=2, read_timeout=2)
        client.connect()
        try:
            yield client
        finally:
            client.close()


def _as_postgres() -> list[str | Path]:
    """The prefix with which root runs PostgreSQL's programs: they refuse to run as root.

    Keeps the right to pass any folder, since the data may lie below one (as /root) that the user
    postgres may not enter.
    """
    if os.geteuid() != 0:
        return []
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        raise ProcessError("no system user postgres: create it, or do not run as root") from None
    ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [str(executable("setpriv")), *ids, *rights]


def _environment() -> dict[str, str]:
    """A clean environment: nothing set for another server reaches ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
