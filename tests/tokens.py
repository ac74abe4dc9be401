"""Tokens as an issuer would make them, good and forged."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt

SECRET = "correct horse battery staple, 32+"
ISSUER = "https://issuer.example"
REMOVED: Any = object()  # as a claim: leave it out
#: The settings of an API that takes these tokens.
KEY = {"jwt_secret": SECRET, "jwt_issuer": ISSUER, "auth_disabled": False}


def claims(**changes: Any) -> dict[str, Any]:
    """Return good claims with some changed."""
    good = {
        "sub": "alice",
        "aud": "waybill",
        "iss": ISSUER,
        "exp": int(time.time()) + 600,
        "scope": "orders:read orders:write",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not REMOVED}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    """Return a signed token; ``changes`` are claims."""
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else None)


def bearer(given: str | None = None, **changes: Any) -> dict[str, str]:
    """Return the headers of a request with a token."""
    return {"Authorization": f"Bearer {given if given is not None else token(**changes)}"}


def segment(data: Any) -> str:
    """Return one part of a token made by hand."""
    return _encoded(json.dumps(data).encode())


def confused(public_key: bytes, kid: str) -> str:
    """Return a token of algorithm confusion: HS256 with a public key; PyJWT would not make it."""
    signed = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{segment(claims())}"
    return f"{signed}.{_encoded(hmac.digest(public_key, signed.encode(), hashlib.sha256))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
