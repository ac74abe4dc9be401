"""Is the process up?"""

from flask import Blueprint

blueprint = Blueprint("health", __name__)


@blueprint.get("/health/")
def health() -> dict[str, bool]:
    """Answer that the API serves requests."""
    return {"ok": True}
