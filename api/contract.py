"""The description of the API that is published: ``docs/openapi.json``, which only grows.

``python -m api.contract`` (``make openapi``) writes it anew, and refuses to where a client of today would break.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from celery import Celery

from api import create_app
from api.breaking import breaking
from shared import settings
from shared.settings import Settings

FILE = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def generate() -> dict[str, Any]:
    """Return the description as this code generates it."""
    app = create_app(Celery("contract", set_as_current=False))
    return json.loads(json.dumps(app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict()))  # type: ignore[no-any-return]


def written(description: dict[str, Any]) -> str:
    """Return a description as the file has it."""
    return json.dumps(description, indent=2, sort_keys=True) + "\n"


def main() -> int:
    """Write the file, unless that would break a client."""
    parser = argparse.ArgumentParser(prog="python -m api.contract", description=__doc__)
    parser.add_argument("--breaking", action="store_true", help="write it although it breaks clients")
    settings.use(Settings(auth_disabled=True, log_level="ERROR"))  # whatever the environment says
    new = generate()
    if FILE.exists() and not parser.parse_args().breaking:
        broken = breaking(json.loads(FILE.read_text()), new)
        if broken:
            sys.stderr.write("\n".join([*broken, "Not written: this would break clients. BREAKING=1 does it.", ""]))
            return 1
    FILE.write_text(written(new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
