"""The keys that sign tokens: one shared secret, or a provider's published key set."""

import threading
import time

import jwt

from shared.errors import Transient
from shared.telemetry.logs import get_logger

HS256_BYTES = 32  # a shorter secret can be guessed from one token (RFC 7518, 3.2)
_TIMEOUT = 2.0  # seconds, for connecting and for each read
_FRESH = 300.0  # seconds until published keys are read again, so that a withdrawn one goes
_PAUSE = 10.0  # seconds between two attempts: unknown key ids cost nothing to make up

log = get_logger(__name__)


class SharedSecret:
    """HS256: whoever checks tokens could make them, too."""

    algorithms = ["HS256"]  # noqa: RUF012 - read only

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def find(self, _token: str) -> bytes:
        """Return the one key."""
        return self._secret


class KeySet:
    """RS256 and ES256 by a key set (JWKS) that its owner rotates. Known keys go on while it cannot be read."""

    algorithms = ["RS256", "ES256"]  # noqa: RUF012 - read only

    def __init__(self, url: str) -> None:
        # its own cache forgets the keys when they age, and asks at each request while the provider is away
        self._source = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_TIMEOUT)
        self._keys: dict[str, jwt.PyJWK] = {}
        self._lock = threading.Lock()
        self._read_at = self._tried_at = float("-inf")

    def find(self, token: str) -> jwt.PyJWK:
        """Return the key that a token names; raises ``Transient`` while no keys could be had at all."""
        kid = jwt.get_unverified_header(token).get("kid")
        if kid not in self._keys or time.monotonic() - self._read_at > _FRESH:
            self._refresh(wait=kid not in self._keys)
        if not self._keys:
            raise Transient("JWT_JWKS_URL: no keys could be read yet")
        if kid not in self._keys:
            raise jwt.InvalidKeyError("the key set has no such key")
        return self._keys[kid]

    def _refresh(self, *, wait: bool) -> None:
        """Read the keys, unless that was tried a moment ago; ``wait`` for somebody else who is reading them."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if time.monotonic() - self._tried_at < _PAUSE:
                return
            self._tried_at = time.monotonic()
            self._keys = {str(key.key_id): key for key in self._source.get_signing_keys()}
            self._read_at = time.monotonic()
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OSError) as error:  # down, or not JWKS
            log.warning("keys_unavailable", variable="JWT_JWKS_URL", error=str(error), known_keys=len(self._keys))
        finally:
            self._lock.release()
