"""What browsers are told on every answer, which pages may call, and whom the API believes about the client."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api import create_app
from api.security import HEADERS
from tests.conftest import UseSettings

SHOP = "https://shop.example"
PREFLIGHT = {
    "Origin": SHOP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,prefer,x-correlation-id",
}


def app_with(house: UseSettings, **changes: object) -> Flask:
    """Return the API with settings changed, and a view that fails."""
    house(**changes)
    app = create_app()

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("on purpose")

    return app


@pytest.fixture
def client(house: UseSettings) -> FlaskClient:
    """The API for two shops."""
    return app_with(house, cors_allowed_origins=(SHOP, "http://localhost:3000")).test_client()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health/", 200), ("/nowhere", 404), ("/v1/orders?page=x", 400), ("/bug", 500), ("/docs", 200)],
)
def test_every_answer_protects_browsers(client: FlaskClient, path: str, status: int) -> None:
    """Errors and bugs as well; the promise of HTTPS is not made over HTTP."""
    answer = client.get(path)
    assert answer.status_code == status
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "Strict-Transport-Security" not in answer.headers
    assert answer.headers["X-Correlation-ID"]


def test_under_https_browsers_are_told_to_stay_there(client: FlaskClient) -> None:
    """For a year."""
    answer = client.get("/health/", base_url="https://localhost")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_a_proxy_is_believed_only_where_one_is_announced(house: UseSettings) -> None:
    """The scheme and the address that a header tells count behind as many proxies as there are, not without."""
    seen: list[tuple[str | None, bool]] = []
    for proxies in (0, 1, 2):
        app = app_with(house, trusted_proxies=proxies)

        @app.after_request
        def look(response: object) -> object:
            from flask import request  # noqa: PLC0415 - the request's own

            seen.append((request.remote_addr, request.is_secure))
            return response

        headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.2", "X-Forwarded-Proto": "https, https"}
        app.test_client().get("/health/", headers=headers)
    assert seen == [("127.0.0.1", False), ("198.51.100.2", True), ("203.0.113.9", True)]


def test_a_page_of_an_allowed_origin_may_call(client: FlaskClient) -> None:
    """The preflight is answered without a token, and the answer's headers are readable for the page."""
    preflight = client.options("/v1/orders", headers=PREFLIGHT)
    assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (200, SHOP)
    assert set(preflight.headers["Access-Control-Allow-Headers"].split(", ")) == {
        "authorization",
        "content-type",
        "idempotency-key",
        "prefer",
        "x-correlation-id",
    }
    answer = client.get("/v1/orders", headers={"Origin": SHOP})
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    assert {"Location", "Retry-After", "RateLimit-Remaining", "X-Correlation-ID"} <= set(
        answer.headers["Access-Control-Expose-Headers"].split(", ")
    )
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", "https://shop.example.evil", "http://shop.example", "null"])
def test_a_page_of_another_origin_may_not(client: FlaskClient, origin: str) -> None:
    """It gets no leave, whatever it looks like."""
    for answer in (
        client.options("/v1/orders", headers={**PREFLIGHT, "Origin": origin}),
        client.get("/v1/orders", headers={"Origin": origin}),
    ):
        assert answer.headers.get("Access-Control-Allow-Origin") is None


def test_without_origins_no_page_may_call(house: UseSettings) -> None:
    """The default."""
    answer = app_with(house).test_client().get("/v1/orders", headers={"Origin": SHOP})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_swagger_ui_comes_from_here(client: FlaskClient) -> None:
    """The page at ``/docs`` and all that it loads; no file outside its folder."""
    page = client.get("/docs").text
    loaded = re.findall(r"""(?:src|href)=["'](.+?)["']""", page)
    assert len(loaded) == 3
    assert all(each.startswith("/docs/") for each in loaded)
    for name, kind in (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "text/javascript")):
        assert f"/docs/{name}" in page
        with client.get(f"/docs/{name}") as answer:
            assert (answer.status_code, answer.mimetype) == (200, kind)
    assert client.get("/docs/..%2f__init__.py").status_code == 404
    assert client.get("/docs/%2e%2e/flask_swagger_ui.py").status_code == 404
