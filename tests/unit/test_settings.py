"""Settings: read once, frozen, and a wrong variable is named with what to do."""

import dataclasses
from pathlib import Path

import pytest

from shared import settings
from shared.errors import ConfigurationError
from shared.settings import SERVICES, Settings
from tests.conftest import UseSettings

WRONG = [
    ("BROKER_URL", "localhost:5672"),
    ("BROKER_URL", "redis://localhost"),
    ("REDIS_URL", "localhost"),
    ("DATABASE_POOL_SIZE", "many"),
    ("DATABASE_POOL_SIZE", "0"),
    ("PAYMENT_GATEWAY", "bank"),
    ("PSP_URL", "127.0.0.1:9002"),
    ("GATEWAY_TIMEOUT", "0"),
    ("GATEWAY_TIMEOUT", "soon"),
    ("COURIER_DEADLINE", "-5"),
    ("NOTIFICATION_URL", "ftp://shop"),
    ("START_TIMEOUT", "-1"),
    ("WORKER_CONCURRENCY", "0"),
    ("WORKER_CONCURRENCY", "2.5"),
    ("STEP_MAX_RETRIES", "-1"),
    ("STEP_BACKOFF_MAX", "0"),
    ("DELIVERY_LIMIT", "0"),
    ("ORDER_DEADLINE", "1h"),
    ("SWEEP_EVERY", "0"),
    ("SWEEP_AFTER", "0"),
    ("SWEEP_QUEUE_LIMIT", "0"),
    ("PORT", "70000"),
    ("PORT", "http"),
    ("WEB_CONCURRENCY", "0"),
    ("WEB_THREADS", "x"),
    ("API_MAX_BYTES", "1MB"),
    ("TRUSTED_PROXIES", "-1"),
    ("CORS_ALLOWED_ORIGINS", "https://shop.example,shop.example"),
    ("CORS_ALLOWED_ORIGINS", "https://shop.example/path"),
    ("CORS_ALLOWED_ORIGINS", "https://*.example"),
    ("ADMISSION_LIMIT", "0"),
    ("JWT_JWKS_URL", "file:///etc/keys"),
    ("JWT_AUDIENCE", ""),
    ("AUTH_DISABLED", "perhaps"),
    ("RATE_LIMIT_CREATE", "ten per minute"),
    ("RATE_LIMIT_CREATE", "0/minute"),
    ("RATE_LIMIT_LIST", "10"),
    ("RATE_LIMIT_DETAIL", "10/minute; often"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "loud"),
    ("PAYMENTS_WEBHOOK_SECRET", "secret"),
    ("PAYMENTS_WEBHOOK_SECRET", f"whsec_{24 * 'YQ'} whsec_YQ=="),
    ("DELIVERY_WEBHOOK_SECRET", f"whsec_{'_' * 40}"),
    ("PSP_WEBHOOK_SECRET", 40 * "a"),
    ("PSP_WEBHOOK_URL", "127.0.0.1:8000"),
    ("PAYMENTS_DATABASE_URL", "no url"),
    ("ORDERS_DATABASE_URL", "mysql://localhost/orders"),
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read none of the variables of whoever runs the tests."""
    for name in dataclasses.fields(Settings):
        for variable in (name.name.upper(), f"{name.name.upper()}_FILE"):
            monkeypatch.delenv(variable, raising=False)
    for service in SERVICES:
        monkeypatch.delenv(f"{service.upper()}_DATABASE_URL", raising=False)


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """One line that names the variable and says what to do."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    text = str(caught.value)
    assert variable in text
    assert text.endswith("Correct the variable and start again.")
    assert "\n" not in text


def test_a_wrong_secret_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error must not print the password of a URL."""
    monkeypatch.setenv("BROKER_URL", "http://user:s3cret@host")
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert "s3cret" not in str(caught.value)


def test_without_variables_everything_is_embedded() -> None:
    """A developer needs no server: the defaults of the class are those of the environment."""
    loaded = settings.load()
    assert loaded == dataclasses.replace(Settings(), databases=loaded.databases)
    assert loaded.embedded
    assert loaded.database_url("orders") == "sqlite:///var/orders.db"


def test_what_is_set_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values arrive with their types."""
    monkeypatch.setenv("BROKER_URL", "amqps://user:pw@broker/waybill")
    monkeypatch.setenv("ORDER_DEADLINE", "90")
    monkeypatch.setenv("GATEWAY_TIMEOUT", "0.5")
    monkeypatch.setenv("VAR_DIR", "/srv/waybill")
    monkeypatch.setenv("PAYMENTS_DATABASE_URL", "postgresql+psycopg2://u:p@db/payments")
    loaded = settings.load()
    assert not loaded.embedded
    assert (loaded.order_deadline, loaded.gateway_timeout, loaded.var_dir) == (90, 0.5, Path("/srv/waybill"))
    assert loaded.database_url("payments") == "postgresql+psycopg2://u:p@db/payments"
    assert loaded.database_url("orders") == "sqlite:////srv/waybill/orders.db"


def test_what_guards_the_api_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several origins, and several rates for one kind of request."""
    monkeypatch.setenv("CORS_ALLOWED_ORIGINS", "https://shop.example,http://localhost:3000")
    monkeypatch.setenv("RATE_LIMIT_CREATE", "5 per second; 100/2 hours")
    monkeypatch.setenv("AUTH_DISABLED", "1")
    loaded = settings.load()
    assert loaded.cors_allowed_origins == ("https://shop.example", "http://localhost:3000")
    assert (loaded.rate_limit_create, loaded.auth_disabled) == ("5 per second; 100/2 hours", True)


@pytest.mark.parametrize("between", [" ", ",", ", ", "\n"])
def test_a_webhooks_secret_may_be_two(monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    """While one is replaced by the other; padded base64 or not."""
    old, new = f"whsec_{'YQ' * 16}", f"whsec_{'YQ' * 17}=="
    monkeypatch.setenv("PAYMENTS_WEBHOOK_SECRET", f"{old}{between}{new}")
    assert settings.load().payments_webhook_secrets == (old, new)


def test_a_wrong_webhook_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a right one with a typing error."""
    monkeypatch.setenv("DELIVERY_WEBHOOK_SECRET", "whsec_s3cret")
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert "s3cret" not in str(caught.value)


def test_a_variable_may_be_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``X_FILE`` names a file that holds X, as container secrets are; a line break at its end does not count."""
    secret = tmp_path / "secret"
    secret.write_text("amqp://user:s3cret@broker/\n")
    monkeypatch.setenv("BROKER_URL_FILE", str(secret))
    assert settings.load().broker_url == "amqp://user:s3cret@broker/"


def test_a_database_url_may_be_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables of the services' databases are secrets too."""
    secret = tmp_path / "secret"
    secret.write_text("postgresql://u:p@db/payments")
    monkeypatch.setenv("PAYMENTS_DATABASE_URL_FILE", str(secret))
    assert settings.load().database_url("payments") == "postgresql://u:p@db/payments"


def test_a_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A typing error in the file's name does not fall back to the default."""
    monkeypatch.setenv("BROKER_URL_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="BROKER_URL_FILE must be a readable file"):
        settings.load()


def test_settings_are_frozen_and_their_repr_holds_no_secret() -> None:
    """Nobody changes them by the way, and printing them is safe."""
    chosen = Settings(
        broker_url="amqp://u:s3cret@b/",
        redis_url="redis://:s3cret@r/",
        databases={"orders": "postgresql://u:s3cret@d/orders"},
        sentry_dsn="https://s3cret@sentry/1",
        notification_url="https://shop/s3cret",
        jwt_secret="s3cret",
        payments_webhook_secrets=("s3cret",),
        delivery_webhook_secrets=("s3cret",),
        psp_webhook_secrets=("s3cret",),
        jwt_jwks_url="https://u:s3cret@idp/keys",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.port = 1  # type: ignore[misc]
    assert "s3cret" not in repr(chosen)


def test_whoever_wires_a_process_may_choose_its_settings(house: UseSettings) -> None:
    """``use`` goes before the environment."""
    house(port=4711)
    assert settings.get_settings().port == 4711


def test_the_environment_is_read_once(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a process settings never change."""
    settings._chosen.clear()
    monkeypatch.setenv("PORT", "4711")
    assert settings.get_settings().port == 4711
    monkeypatch.setenv("PORT", "4712")
    assert settings.get_settings().port == 4711
