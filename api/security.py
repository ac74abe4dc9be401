"""What every answer says to browsers, which pages may call, and whose word counts about the client's address."""

from flask import Flask, Response, request
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from shared.settings import get_settings

HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_HSTS = "max-age=31536000"  # seconds: a year
_PREFLIGHT_HOLDS = 600  # seconds
_ACCEPTED = ["Authorization", "Content-Type", "Idempotency-Key", "Prefer", "X-Correlation-ID"]
_EXPOSED = [
    "Idempotent-Replay",
    "Location",
    "Preference-Applied",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "X-Correlation-ID",
]


def register(app: Flask) -> None:
    """Protect the answers of ``app``, errors included."""
    settings = get_settings()
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    if settings.cors_allowed_origins:
        CORS(
            app,
            origins=list(settings.cors_allowed_origins),
            methods=["GET", "POST"],
            allow_headers=_ACCEPTED,
            expose_headers=_EXPOSED,
            max_age=_PREFLIGHT_HOLDS,
        )

    @app.after_request
    def _protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = _HSTS
        return response
