"""Who may call: only a token that holds in every part opens a view, and only as far as its scopes go."""

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from api import create_app
from api.tokens import ANONYMOUS, InvalidToken, tokens_from
from shared.errors import ConfigurationError
from shared.settings import Settings
from tests.conftest import UseSettings
from tests.support import json_logs
from tests.tokens import ISSUER, KEY, REMOVED, SECRET, bearer, claims, segment, token


def unsigned(algorithm: str, signature: str = "") -> str:
    """Return a token that nobody signed."""
    return f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment(claims())}.{signature}"


def tampered() -> str:
    """Return a good token whose subject was exchanged."""
    head, _, signature = token().split(".")
    return f"{head}.{segment(claims(sub='bob'))}.{signature}"


FORGED: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "no token": lambda: "nonsense",
    "another secret": lambda: token("x" * 32),
    "a changed subject": tampered,
    "no algorithm": lambda: unsigned("none"),
    "no algorithm in capitals": lambda: unsigned("NONE"),
    "no algorithm with a signature": lambda: unsigned("none", token().rpartition(".")[2]),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "HS512, which we do not offer": lambda: token(SECRET * 2, "HS512"),
    "RS256 without such a key": lambda: unsigned("RS256", "AAAA"),
    "expired": lambda: token(exp=int(time.time()) - 1),
    "no expiry": lambda: token(exp=REMOVED),
    "an expiry that is no time": lambda: token(exp="tomorrow"),
    "not valid yet": lambda: token(nbf=int(time.time()) + 60),
    "another audience": lambda: token(aud="billing"),
    "no audience": lambda: token(aud=REMOVED),
    "another issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=REMOVED),
    "no subject": lambda: token(sub=REMOVED),
    "an empty subject": lambda: token(sub=""),
    "a subject that PostgreSQL cannot store": lambda: token(sub="a\x00b"),
    "a subject too long to store": lambda: token(sub="a" * 129),
    "a header too deep to parse": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.AAAA",
    "a header that is no object": lambda: f"{segment([1])}.{segment(claims())}.AAAA",
}


@pytest.fixture
def client(house: UseSettings) -> FlaskClient:
    """The API with a key."""
    house(**KEY)
    return create_app().test_client()


def test_a_good_token_opens_the_view(client: FlaskClient) -> None:
    """Signature, audience, issuer, expiry and scope are right."""
    assert client.get("/v1/orders", headers=bearer()).status_code == 200


@pytest.mark.parametrize("name", FORGED)
def test_a_token_that_does_not_hold_is_refused(client: FlaskClient, name: str) -> None:
    """401 with a challenge, a problem document, and no word on what was wrong."""
    answer = client.get("/v1/orders", headers=bearer(FORGED[name]()))
    assert (answer.status_code, answer.mimetype) == (401, "application/problem+json")
    assert answer.json["detail"] == "UNAUTHORIZED"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer realm=waybill")


@pytest.mark.parametrize("header", [None, "Basic YTpi", "Bearer", "bearer ", "Token abc", "\xff"])
def test_without_a_bearer_token_nothing_opens(client: FlaskClient, header: str | None) -> None:
    """No header, another scheme, nothing behind the scheme."""
    answer = client.get("/v1/orders", headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer realm=waybill"


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=60))
def test_no_header_is_a_bug(text: str) -> None:
    """Whatever stands there is refused or read; nothing else is raised."""
    tokens = tokens_from(Settings(**KEY))
    assert tokens
    for given_token in (text, f"{text}.e30.AAAA", token() + text):
        try:
            assert tokens.read(given_token).subject == "alice"
        except InvalidToken:
            continue


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("orders:read", 200),
        (["orders:read"], 200),
        ("openid orders:read", 200),
        ("orders:write", 403),
        ("ops", 403),
        ("orders:readall", 403),
        ("", 403),
        (REMOVED, 403),
        (["orders:read", 7], 200),
        ({"orders:read": True}, 403),
    ],
)
def test_a_scope_decides(client: FlaskClient, scope: Any, status: int) -> None:
    """A good token without the view's scope gets 403, which names the scope that is missing."""
    answer = client.get("/v1/orders", headers=bearer(scope=scope))
    assert answer.status_code == status
    if status == 403:
        assert answer.json["detail"] == "FORBIDDEN"
        assert 'error=insufficient_scope, scope="orders:read"' in answer.headers["WWW-Authenticate"]


def test_a_caller_sees_everything_only_with_ops() -> None:
    """The scope ``ops`` is for operators."""
    tokens = tokens_from(Settings(**KEY))
    assert tokens
    assert not tokens.read(token()).sees_all
    assert tokens.read(token(scope="orders:read ops")).sees_all


def test_the_description_tells_who_may_call(client: FlaskClient) -> None:
    """Each guarded operation names its scope and its 401, 403 and 429; the scheme is described."""
    spec = client.get("/openapi.json").json
    listing = spec["paths"]["/v1/orders"]["get"]
    assert listing["security"] == [{"bearerAuth": ["orders:read"]}]
    assert {"401", "403", "429"} <= listing["responses"].keys()
    assert spec["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({}, ["JWT_SECRET", "JWT_JWKS_URL", "AUTH_DISABLED"]),
        ({"jwt_secret": SECRET, "jwt_jwks_url": "https://i.example/keys"}, ["JWT_SECRET", "JWT_JWKS_URL"]),
        ({"jwt_secret": SECRET, "jwt_issuer": ISSUER, "auth_disabled": True}, ["JWT_SECRET", "AUTH_DISABLED"]),
        ({"jwt_secret": "x" * 31, "jwt_issuer": ISSUER}, ["JWT_SECRET", "32"]),
        ({"jwt_secret": SECRET}, ["JWT_ISSUER"]),
        ({"auth_disabled": True, "api_host": "0.0.0.0"}, ["AUTH_DISABLED", "API_HOST"]),  # noqa: S104
        ({"auth_disabled": True, "api_host": "waybill.example"}, ["AUTH_DISABLED", "API_HOST"]),
    ],
)
def test_the_api_does_not_start_open_or_ambiguous(chosen: dict[str, Any], names: list[str]) -> None:
    """Without exactly one way to know who calls there is one line with the variables' names, and no secret in it."""
    with pytest.raises(ConfigurationError) as caught:
        tokens_from(Settings(**chosen))
    text = str(caught.value)
    assert all(name in text for name in names)
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
def test_on_the_loopback_authentication_may_be_disabled(host: str) -> None:
    """For developing; every loopback address will do."""
    assert tokens_from(Settings(auth_disabled=True, api_host=host)) is None


def test_disabled_authentication_is_warned_about_once(house: UseSettings) -> None:
    """One line, at the start."""
    with json_logs() as lines:
        client = create_app().test_client()
        assert client.get("/v1/orders").status_code == 200
        warnings = [line for line in lines() if line["event"] == "authentication_disabled"]
    assert [line["level"] for line in warnings] == ["warning"]
    assert ANONYMOUS.sees_all


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({}, "192.0.2.7"),
        ({}, "::ffff:192.0.2.7"),
        ({}, ""),
        ({"X-Forwarded-For": "127.0.0.1"}, "127.0.0.1"),
        ({"Forwarded": "for=127.0.0.1"}, "127.0.0.1"),
        ({"Via": "1.1 proxy"}, "127.0.0.1"),
    ],
)
def test_disabled_authentication_is_for_local_callers_only(
    house: UseSettings, headers: dict[str, str], address: str
) -> None:
    """Not for another machine, and not through a proxy, before which everybody would be local."""
    client = create_app().test_client()
    answer = client.get("/v1/orders", headers=headers, environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == 403
    assert client.get("/v1/orders").status_code == 200
