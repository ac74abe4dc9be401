"""One database per service: engine, transactions and the few places where SQLite and PostgreSQL differ.

A use case opens one transaction with :meth:`Database.transaction` and never holds it across a network call.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Engine, create_engine, delete, event, inspect, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from shared.errors import Transient
from shared.settings import get_settings

_LOCK_TIMEOUT = 5  # seconds
_STATEMENT_TIMEOUT = 15  # seconds


def utc_now() -> datetime:
    """Return the time now, aware and in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always aware and in UTC; SQLite by itself would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store in UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read back as aware."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


class Database:
    """A service's database. Nothing connects until the first transaction."""

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self.engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url, pool_size)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction, commit it at the end of the block; a lost connection or a lock is ``Transient``."""
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError) as error:
            raise Transient(f"database: {str(error.orig).strip()}") from error


def _postgresql(url: str, pool_size: int) -> Engine:
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,  # a restarted server costs a reconnect, not an error
        pool_timeout=_LOCK_TIMEOUT,
        connect_args={
            "connect_timeout": 3,
            "options": f"-c lock_timeout={_LOCK_TIMEOUT}s -c statement_timeout={_STATEMENT_TIMEOUT}s",
        },
    )


def _sqlite(url: str) -> Engine:
    """Open SQLite so that writers wait for each other instead of failing."""
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": _LOCK_TIMEOUT})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, see below
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # IMMEDIATE: a deferred one that reads first and writes later fails at once when another has written
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def insert_new(session: Session, model: type[DeclarativeBase], rows: Sequence[dict[str, Any]]) -> None:
    """Insert ``rows`` in one statement, leaving alone those whose key is there already."""
    if rows:
        session.execute(_insert_new(session, model), list(rows))


def insert_if_new(session: Session, model: type[DeclarativeBase], row: dict[str, Any]) -> bool:
    """Insert ``row`` unless its key is there already; say whether it was inserted."""
    keys = inspect(model).primary_key
    return session.execute(_insert_new(session, model).values(**row).returning(*keys)).first() is not None


def delete_before(session: Session, column: InstrumentedAttribute[datetime], time: datetime, limit: int) -> int:
    """Delete the oldest rows of a column's table, at most ``limit`` of those before a time; return how many."""
    keys = inspect(column.class_).primary_key
    oldest = select(*keys).where(column < time).order_by(column).limit(limit)
    result = session.execute(delete(column.class_).where(tuple_(*keys).in_(oldest)))
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


def _insert_new(session: Session, model: type[DeclarativeBase]) -> Any:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert(model).on_conflict_do_nothing()


_databases: dict[str, Database] = {}


def get_database(service: str) -> Database:
    """Return this process's database of a service, made from the settings on first use."""
    if service not in _databases:
        settings = get_settings()
        _databases[service] = Database(settings.database_url(service), settings.database_pool_size)
    return _databases[service]


def forget_connections(*, close: bool = True) -> None:
    """Drop every pool: after a fork (``close=False``, the parent still uses the sockets) or at the end."""
    for database in _databases.values():
        database.engine.dispose(close=close)
    _databases.clear()
