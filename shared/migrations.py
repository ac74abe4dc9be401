"""Migrations: how every service's Alembic environment runs, on SQLite and PostgreSQL alike.

A migration must be compatible with the code that still runs: expand first, contract in a later release.
"""

from pathlib import Path

from alembic import command, context
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, text
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.database import get_database
from shared.errors import Transient, WaybillError

_INI = Path(__file__).resolve().parent.parent / "alembic.ini"
_ADVISORY_LOCK = 7_461_001  # two deployments at once: the second waits for the first


def run(service: str, metadata: MetaData) -> None:
    """Run the migrations of a service's database; what its ``migrations/env.py`` calls."""
    with get_database(service).engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()


def upgrade(service: str) -> None:
    """Bring a service's database to the newest version."""
    try:
        _refuse_newer(service, _scripts(service))
        command.upgrade(_config(service), "head")
    except OperationalError as error:
        raise Transient(f"{service.upper()}_DATABASE_URL: {error.orig}") from error
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise WaybillError(f"{service.upper()}_DATABASE_URL: the migration failed: {reason}") from error


def check_version(service: str) -> None:
    """Raise ``WaybillError`` naming the command when a database is not at the version that this code expects."""
    scripts = _scripts(service)
    current, expected = _refuse_newer(service, scripts), scripts.get_current_head()
    if current != expected:
        raise WaybillError(
            f"{service.upper()}_DATABASE_URL: the database is at version {current or 'none'}, this code needs "
            f"{expected}. Run `alembic -n {service} upgrade head`."
        )


def _refuse_newer(service: str, scripts: ScriptDirectory) -> str | None:
    """Return the database's version; raise ``WaybillError`` when it is one that this code has never heard of."""
    with get_database(service).engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if current and current not in known:
        raise WaybillError(
            f"{service.upper()}_DATABASE_URL: the database is at version {current}, which this code does not know: "
            "a newer release made it. Run that release, or restore the backup that this one made."
        )
    return current


def _scripts(service: str) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(service))


def _config(service: str) -> Config:
    return Config(str(_INI), ini_section=service)
