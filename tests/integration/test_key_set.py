"""A published key set over HTTP: keys rotate, vanish and cannot be reached, and nobody is let in by mistake."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from api import create_app, keys
from stacks.processes import free_port
from tests.conftest import UseSettings
from tests.tokens import ISSUER, bearer, confused, token

ALGORITHMS: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm}


class Issuer:
    """An identity provider: private keys to sign with, and what it publishes of them."""

    def __init__(self) -> None:
        self.private: dict[str, tuple[str, Any]] = {}
        self.body: bytes | None = None  # instead of the keys
        self.asked = 0
        self.hang = threading.Event()
        self.hang.set()
        self.url = ""

    def add(self, kid: str, algorithm: str = "RS256") -> None:
        """Publish another key."""
        made = (
            rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
        )
        self.private[kid] = (algorithm, made)

    def token(self, kid: str, **claims: Any) -> str:
        """Sign a token."""
        algorithm, key = self.private[kid]
        return token(key, algorithm, kid, **claims)

    def published(self) -> bytes:
        """What it answers."""
        self.asked += 1
        self.hang.wait(30)
        if self.body is not None:
            return self.body
        described = []
        for kid, (algorithm, key) in list(self.private.items()):
            public = ALGORITHMS[algorithm].to_jwk(key.public_key(), as_dict=True)
            described.append({**public, "kid": kid, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": described}).encode()

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[None]:
        """Answer over HTTP within the block."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = issuer.published()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/keys"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self.hang.set()
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A provider with one RSA key."""
    made = Issuer()
    made.add("one")
    with made.serving():
        yield made


@pytest.fixture
def client(house: UseSettings, issuer: Issuer) -> FlaskClient:
    """The API that trusts it."""
    return client_of(house, issuer.url)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key ids that nobody knows are looked up each time."""
    monkeypatch.setattr(keys, "_PAUSE", 0.0)


def client_of(house: UseSettings, url: str) -> FlaskClient:
    """An API that reads its keys at a URL."""
    house(auth_disabled=False, jwt_jwks_url=url, jwt_issuer=ISSUER)
    return create_app().test_client()


def ask(client: FlaskClient, given: str) -> int:
    """Ask with a token; return the status."""
    return client.get("/v1/orders", headers=bearer(given)).status_code


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_both_algorithms_are_taken(client: FlaskClient, issuer: Issuer, algorithm: str) -> None:
    """By the key that the token names; the set is read once."""
    issuer.add("two", algorithm)
    assert [ask(client, issuer.token("two")) for _ in range(5)] == [200] * 5
    assert issuer.asked == 1


def test_a_forged_token_is_refused(client: FlaskClient, issuer: Issuer) -> None:
    """Another's key under a known id, a shared secret made of the public key, another algorithm, no key id, expired."""
    stranger = Issuer()
    stranger.add("one")
    public = issuer.private["one"][1].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        stranger.token("one"),
        confused(pem, "one"),
        token(ec.generate_private_key(ec.SECP256R1()), "ES256", "one"),
        token(issuer.private["one"][1], "PS256", "one"),
        token(issuer.private["one"][1], "RS256"),
        issuer.token("one", exp=int(time.time()) - 1),
        issuer.token("one", iss="https://evil.example"),
        issuer.token("one", aud="other"),
    ]
    assert [ask(client, each) for each in forged] == [401] * len(forged)
    assert ask(client, issuer.token("one")) == 200


@pytest.mark.usefixtures("_patient")
def test_a_new_key_is_found_at_once(client: FlaskClient, issuer: Issuer) -> None:
    """Rotation: the first token of the new key has the set read again."""
    assert ask(client, issuer.token("one")) == 200
    issuer.add("two")
    assert ask(client, issuer.token("two")) == 200
    assert issuer.asked == 2


def test_made_up_key_ids_do_not_flood_the_provider(client: FlaskClient, issuer: Issuer) -> None:
    """However many there are, it is asked once in a while."""
    issuer.private["ghost"] = issuer.private["one"]
    ghost = issuer.token("ghost")
    del issuer.private["ghost"]
    assert [ask(client, ghost) for _ in range(20)] == [401] * 20
    assert issuer.asked == 1


@pytest.mark.usefixtures("_patient")
def test_a_withdrawn_key_is_forgotten(client: FlaskClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the keys are read again, its tokens end."""
    old = issuer.token("one")
    assert ask(client, old) == 200
    issuer.add("two")
    del issuer.private["one"]
    assert ask(client, old) == 200
    monkeypatch.setattr(keys, "_FRESH", 0.0)
    assert ask(client, old) == 401


def test_without_any_key_nobody_can_be_told_apart(house: UseSettings) -> None:
    """503 with ``Retry-After``: neither a 401, which would be untrue, nor a 500."""
    client = client_of(house, f"http://127.0.0.1:{free_port()}/keys")
    issuer = Issuer()
    issuer.add("one")
    answer = client.get("/v1/orders", headers=bearer(issuer.token("one")))
    assert (answer.status_code, answer.mimetype) == (503, "application/problem+json")
    assert int(answer.headers["Retry-After"]) >= 1
    assert ask(client, "nonsense") == 401


@pytest.mark.usefixtures("_patient")
def test_known_keys_outlive_their_provider(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of the provider shuts nobody out, and a new key is found when it is over."""
    issuer, port = Issuer(), free_port()
    issuer.add("one")
    with issuer.serving(port):
        client = client_of(house, issuer.url)
        assert ask(client, issuer.token("one")) == 200
    monkeypatch.setattr(keys, "_FRESH", 0.0)
    issuer.add("two")
    assert [ask(client, issuer.token(kid)) for kid in ("one", "two")] == [200, 401]
    with issuer.serving(port):
        assert [ask(client, issuer.token(kid)) for kid in ("one", "two")] == [200, 200]


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"keys": 7}', b'{"keys": [7]}', b'{"keys": []}', b"\xff"])
def test_whatever_the_provider_answers_is_no_bug(client: FlaskClient, issuer: Issuer, body: bytes) -> None:
    """Nonsense counts as no answer."""
    issuer.body = body
    assert ask(client, issuer.token("one")) == 503


def test_a_provider_that_hangs_holds_up_nobody_whose_key_is_known(
    client: FlaskClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request waits for the provider to give up; the others go on with what is known."""
    good = issuer.token("one")
    assert ask(client, good) == 200
    monkeypatch.setattr(keys, "_FRESH", 0.0)
    monkeypatch.setattr(keys, "_PAUSE", 0.0)
    issuer.hang.clear()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(ask, client, good)
        while issuer.asked < 2 and not waiting.done():
            pass
        started = time.monotonic()
        assert [ask(client, good) for _ in range(3)] == [200] * 3
        assert time.monotonic() - started < 1
        assert not waiting.done()
        issuer.hang.set()
        assert waiting.result() == 200
