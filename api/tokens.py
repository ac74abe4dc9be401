"""Bearer tokens: which key signs them, what they must say, and the caller they make. Needs no database and no Redis."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt

from api.keys import HS256_BYTES, KeySet, SharedSecret
from shared.errors import ConfigurationError, WaybillError
from shared.settings import RATES, Settings
from shared.telemetry.logs import get_logger

SCOPES = frozenset({"orders:read", "orders:write", "ops"})
_SEES_ALL = "ops"
_LONGEST_SUBJECT = 128  # characters, what the orders database keeps of an owner
_KINDS = frozenset({"create", "list", "detail"})

log = get_logger(__name__)


class InvalidToken(WaybillError):
    """A token that proves nothing; the reason is for the log."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. ``limits`` are the rates, by kind of request, that their token grants."""

    subject: str
    scopes: frozenset[str]
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def sees_all(self) -> bool:
        """Say whether everybody's orders are theirs to see."""
        return _SEES_ALL in self.scopes


ANONYMOUS = Caller("anonymous", SCOPES)


class Keys(Protocol):
    """Where the key of a token is found."""

    algorithms: list[str]

    def find(self, token: str) -> Any:
        """Return the key; raises ``Transient`` where keys cannot be had, ``jwt.PyJWTError`` where there is none."""


class Tokens:
    """Reads tokens: signature, audience, issuer and expiry decide."""

    def __init__(self, keys: Keys, audience: str, issuer: str) -> None:
        self._keys, self._audience, self._issuer = keys, audience, issuer

    def read(self, token: str) -> Caller:
        """Return the caller that a token proves; raises ``InvalidToken``."""
        try:
            claims = jwt.decode(
                token,
                self._keys.find(token),
                algorithms=self._keys.algorithms,  # ours, never the token's own word
                audience=self._audience,
                issuer=self._issuer,
                # not iat: an issuer's clock that is a second ahead is no forgery
                options={"require": ["exp", "sub", "aud", "iss"], "verify_iat": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:  # the last two: a header that is no sane JSON
            raise InvalidToken(str(error)) from error
        return _caller(claims)


def tokens_from(settings: Settings) -> Tokens | None:
    """Return what reads the tokens, None where ``AUTH_DISABLED`` says that none are wanted.

    Raises ``ConfigurationError`` for settings that would leave the API open, or shut for everybody.
    """
    given = [name for name in ("jwt_secret", "jwt_jwks_url", "auth_disabled") if getattr(settings, name)]
    if len(given) != 1:
        found = " and ".join(name.upper() for name in given) or "none of them"
        raise ConfigurationError(f"Set one of JWT_SECRET, JWT_JWKS_URL and AUTH_DISABLED=1; there is {found}.")
    if settings.auth_disabled:
        if not is_loopback(settings.api_host):
            raise ConfigurationError("AUTH_DISABLED=1 is for a loopback address: correct API_HOST, or set a key.")
        return None
    if not settings.jwt_issuer:
        raise ConfigurationError("JWT_ISSUER is missing: set it to the iss of the tokens and start again.")
    return Tokens(_keys(settings), settings.jwt_audience, settings.jwt_issuer)


def is_loopback(address: str | None) -> bool:
    """Say whether an address is this machine's own."""
    try:
        return address == "localhost" or ipaddress.ip_address((address or "").strip("[]")).is_loopback
    except ValueError:
        return False


def _keys(settings: Settings) -> Keys:
    if settings.jwt_jwks_url:
        return KeySet(settings.jwt_jwks_url)
    secret = (settings.jwt_secret or "").encode()
    if len(secret) < HS256_BYTES:
        raise ConfigurationError(f"JWT_SECRET is too short: HS256 needs {HS256_BYTES} bytes or more, at random.")
    return SharedSecret(secret)


def _caller(claims: Mapping[str, Any]) -> Caller:
    subject = claims["sub"]
    if not (0 < len(subject) <= _LONGEST_SUBJECT and subject.isprintable()):
        raise InvalidToken("sub is empty, too long or not printable")
    return Caller(subject, _scopes(claims.get("scope")), _limits(claims.get("rate_limits"), subject))


def _scopes(claim: Any) -> frozenset[str]:
    """Read OAuth 2's ``scope``: a string with spaces, or a list as some issuers write it."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return SCOPES.intersection(name for name in names if isinstance(name, str))


def _limits(claim: Any, subject: str) -> dict[str, str]:
    """Return the rates that a token grants; one that is malformed is no reason to refuse its caller."""
    if claim is None:
        return {}
    granted = claim if isinstance(claim, dict) else {"": claim}
    good = {k: v for k, v in granted.items() if k in _KINDS and isinstance(v, str) and RATES.match(v)}
    if len(good) < len(granted):
        log.warning("rate_limits_claim_ignored", subject=subject, ignored=sorted(granted.keys() - good.keys()))
    return good
