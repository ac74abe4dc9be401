"""The settings: one frozen typed object, read once from the environment. Nobody else reads ``os.environ``.

Whatever is unset takes its embedded default: an in-process broker and Redis, SQLite files and a simulated
payment provider, so that a developer needs no server. Every variable may also be read from a file by appending
``_FILE`` to its name, as container secrets are.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from environs import EnvError, FileAwareEnv
from marshmallow import ValidationError
from marshmallow.validate import Length, OneOf, Range, Regexp

from shared.errors import ConfigurationError

MEMORY = "memory://"
_MEMORY_BROKER = f"{MEMORY}localhost/"  # kombu warns about a URL without a host
DEFAULT_PSP_URL = "http://127.0.0.1:9002"
_WEBHOOK_PREFIX = "whsec_"
_WEBHOOK_KEY_BYTES = 24  # the least that Standard Webhooks allows
#: Flask-Limiter's notation: "10/minute", "5 per second; 1000 per day".
_RATE = r"\s*[1-9]\d{0,8}\s*(/|per)\s*([1-9]\d{0,3}\s*)?(second|minute|hour|day|month|year)s?\s*"
RATES = re.compile(rf"^{_RATE}([,;|]{_RATE})*\Z", re.IGNORECASE)
SERVICES = ("payments", "delivery", "notifications", "orders")
DECLARE, EXPECT = "declare", "expect"


def _compat_defaults() -> dict[str, Any]:
    """Return what completes an order that came through ``/api``; for the simulated provider and our couriers."""
    address = {"line1": "Counter", "city": "Berlin", "postal_code": "10115", "country": "DE", "area": "north"}
    return {"payment_method": "tok_ok", "address": address}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process needs to know. Durations are seconds, sizes bytes."""

    var_dir: Path = Path("var")
    broker_url: str = field(default=_MEMORY_BROKER, repr=False)
    topology: str = DECLARE
    redis_url: str = field(default=MEMORY, repr=False)
    databases: Mapping[str, str] = field(default_factory=dict, repr=False)
    database_pool_size: int = 10

    payment_gateway: str = "simulator"
    psp_url: str | None = None
    gateway_timeout: float = 5.0
    courier_deadline: int = 600
    notification_url: str | None = field(default=None, repr=False)
    payments_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    delivery_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    psp_webhook_url: str | None = None
    psp_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)

    start_timeout: float = 30.0
    worker_concurrency: int = 8
    step_max_retries: int = 8
    step_backoff_max: int = 60
    delivery_limit: int = 10

    order_deadline: int = 3600
    sweep_every: float = 5.0
    sweep_after: int = 30
    sweep_queue_limit: int = 1000
    reconcile_every: float = 60.0

    api_host: str = "127.0.0.1"
    port: int = 8000
    web_concurrency: int = 2
    web_threads: int = 8
    api_max_bytes: int = 1_000_000
    trusted_proxies: int = 0
    cors_allowed_origins: tuple[str, ...] = ()
    admission_limit: int = 10_000
    idempotency_ttl: int = 604_800
    compat_defaults: Mapping[str, Any] = field(default_factory=_compat_defaults, repr=False)

    jwt_secret: str | None = field(default=None, repr=False)
    jwt_jwks_url: str | None = field(default=None, repr=False)
    jwt_audience: str = "waybill"
    jwt_issuer: str | None = None
    auth_disabled: bool = False
    rate_limit_create: str = "10/minute"
    rate_limit_list: str = "120/minute"
    rate_limit_detail: str = "300/minute"

    log_format: str = "auto"
    log_level: str = "INFO"
    sentry_dsn: str | None = field(default=None, repr=False)
    otlp_endpoint: str | None = None
    environment: str = "development"

    @property
    def gateway_url(self) -> str:
        """Return where the payment provider answers."""
        return self.psp_url or DEFAULT_PSP_URL

    @property
    def embedded(self) -> bool:
        """Say whether the broker lives inside this process."""
        return self.broker_url.startswith(MEMORY)

    def database_url(self, service: str) -> str:
        """Return the URL of a service's own database."""
        return self.databases.get(service) or f"sqlite:///{self.var_dir / service}.db"


def load() -> Settings:
    """Read the settings; raise ``ConfigurationError`` with the variable's name for a value that is wrong."""
    try:
        return _read(FileAwareEnv(strip_whitespace=True))
    except (EnvError, ValueError) as error:
        raise ConfigurationError(f"{error} Correct the variable and start again.") from None


def _read(env: FileAwareEnv) -> Settings:
    positive = Range(min=0, min_inclusive=False)
    at_least_one = Range(min=1)
    rates = Regexp(RATES, error='Must be a rate like "10/minute", or several with a semicolon between them.')
    origin = Regexp(r"^(\*|https?://[^\s/*?#,]+)\Z", error="Must be origins like https://shop.example, without a path.")
    url = _scheme("http", "https")
    database = Regexp(
        r"^$|^(sqlite|postgresql(\+psycopg2)?)://",
        error="Must be empty, or start with sqlite://, postgresql:// or postgresql+psycopg2://.",
    )
    return Settings(
        var_dir=env.path("VAR_DIR", Path("var")),
        broker_url=env.str("BROKER_URL", _MEMORY_BROKER, validate=_scheme("memory", "amqp", "amqps")),
        topology=env.str("TOPOLOGY", DECLARE, validate=OneOf([DECLARE, EXPECT])),
        redis_url=env.str("REDIS_URL", MEMORY, validate=_scheme("memory", "redis", "rediss", "unix")),
        databases={name: env.str(f"{name.upper()}_DATABASE_URL", "", validate=database) for name in SERVICES},
        database_pool_size=env.int("DATABASE_POOL_SIZE", 10, validate=at_least_one),
        payment_gateway=env.str("PAYMENT_GATEWAY", "simulator", validate=OneOf(["simulator", "memory"])),
        psp_url=env.str("PSP_URL", None, validate=url),
        gateway_timeout=env.float("GATEWAY_TIMEOUT", 5.0, validate=positive),
        courier_deadline=env.int("COURIER_DEADLINE", 600, validate=at_least_one),
        notification_url=env.str("NOTIFICATION_URL", None, validate=url),
        payments_webhook_secrets=_listed(env.str("PAYMENTS_WEBHOOK_SECRET", "", validate=_webhook_secrets)),
        delivery_webhook_secrets=_listed(env.str("DELIVERY_WEBHOOK_SECRET", "", validate=_webhook_secrets)),
        psp_webhook_url=env.str("PSP_WEBHOOK_URL", None, validate=url),
        psp_webhook_secrets=_listed(env.str("PSP_WEBHOOK_SECRET", "", validate=_webhook_secrets)),
        start_timeout=env.float("START_TIMEOUT", 30.0, validate=Range(min=0)),
        worker_concurrency=env.int("WORKER_CONCURRENCY", 8, validate=at_least_one),
        step_max_retries=env.int("STEP_MAX_RETRIES", 8, validate=Range(min=0)),
        step_backoff_max=env.int("STEP_BACKOFF_MAX", 60, validate=at_least_one),
        delivery_limit=env.int("DELIVERY_LIMIT", 10, validate=at_least_one),
        order_deadline=env.int("ORDER_DEADLINE", 3600, validate=at_least_one),
        sweep_every=env.float("SWEEP_EVERY", 5.0, validate=positive),
        sweep_after=env.int("SWEEP_AFTER", 30, validate=at_least_one),
        reconcile_every=env.float("RECONCILE_EVERY", 60.0, validate=positive),
        sweep_queue_limit=env.int("SWEEP_QUEUE_LIMIT", 1000, validate=at_least_one),
        api_host=env.str("API_HOST", "127.0.0.1"),
        port=env.int("PORT", 8000, validate=Range(min=1, max=65535)),
        web_concurrency=env.int("WEB_CONCURRENCY", 2, validate=at_least_one),
        web_threads=env.int("WEB_THREADS", 8, validate=at_least_one),
        api_max_bytes=env.int("API_MAX_BYTES", 1_000_000, validate=at_least_one),
        trusted_proxies=env.int("TRUSTED_PROXIES", 0, validate=Range(min=0)),
        cors_allowed_origins=tuple(env.list("CORS_ALLOWED_ORIGINS", [], validate=_each(origin))),
        idempotency_ttl=env.int("IDEMPOTENCY_TTL", 604_800, validate=at_least_one),
        compat_defaults=_mapping("COMPAT_DEFAULTS", env.json("COMPAT_DEFAULTS", None)) or _compat_defaults(),
        admission_limit=env.int("ADMISSION_LIMIT", 10_000, validate=at_least_one),
        jwt_secret=env.str("JWT_SECRET", None),
        jwt_jwks_url=env.str("JWT_JWKS_URL", None, validate=url),
        jwt_audience=env.str("JWT_AUDIENCE", "waybill", validate=Length(min=1)),
        jwt_issuer=env.str("JWT_ISSUER", None),
        auth_disabled=env.bool("AUTH_DISABLED", False),
        rate_limit_create=env.str("RATE_LIMIT_CREATE", "10/minute", validate=rates),
        rate_limit_list=env.str("RATE_LIMIT_LIST", "120/minute", validate=rates),
        rate_limit_detail=env.str("RATE_LIMIT_DETAIL", "300/minute", validate=rates),
        log_format=env.str("LOG_FORMAT", "auto", validate=OneOf(["auto", "json", "console"])),
        log_level=env.str("LOG_LEVEL", "INFO", validate=OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])),
        sentry_dsn=env.str("SENTRY_DSN", None),
        otlp_endpoint=env.str("OTEL_EXPORTER_OTLP_ENDPOINT", None, validate=url),
        environment=env.str("ENVIRONMENT", "development"),
    )


def _scheme(*schemes: str) -> Regexp:
    return Regexp(rf"^({'|'.join(schemes)})://", error=f"Must be a URL that starts with {' or '.join(schemes)}://.")


def _mapping(variable: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise EnvError(f'Environment variable "{variable}" invalid: Must be a JSON object.')
    return value or {}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _webhook_secrets(text: str) -> None:
    """Refuse what Standard Webhooks could not sign with, or could guess."""
    for secret in _listed(text):
        encoded = secret.removeprefix(_WEBHOOK_PREFIX)
        try:
            key = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith(_WEBHOOK_PREFIX) or len(key) < _WEBHOOK_KEY_BYTES:
            raise ValidationError(f"Must be {_WEBHOOK_PREFIX} and base64 of at least {_WEBHOOK_KEY_BYTES} bytes.")


def _each(check: Regexp) -> Callable[[list[str]], None]:
    def check_all(values: list[str]) -> None:
        for value in values:
            check(value)

    return check_all


_chosen: list[Settings] = []


def use(settings: Settings) -> None:
    """Take ``settings`` instead of the environment's; for whoever wires a process, before anything connects."""
    _chosen[:] = [settings]


def get_settings() -> Settings:
    """Return this process's settings."""
    return _chosen[0] if _chosen else _from_environment()


@cache
def _from_environment() -> Settings:
    return load()
