"""Load the couriers from a JSON file: ``python -m workers.delivery.roster deploy/couriers.json``.

The file is a list of ``{"id", "name", "area"[, "capacity"][, "active"]}``. Loading again updates; a courier who is no
longer in the file stays, since bookings refer to them: say ``"active": false`` instead.
"""

import json
import sys
from pathlib import Path

from marshmallow import Schema, ValidationError, fields, validate
from sqlalchemy import select

from shared.database import get_database
from shared.errors import WaybillError
from workers.delivery.models import Courier

_ARGUMENTS = 2


class _CourierSchema(Schema):
    id = fields.String(required=True, validate=validate.Length(min=1, max=64))
    name = fields.String(required=True, validate=validate.Length(min=1, max=128))
    area = fields.String(required=True, validate=validate.Length(min=1, max=64))
    capacity = fields.Integer(load_default=None, allow_none=True, strict=True, validate=validate.Range(min=1))
    active = fields.Boolean(load_default=True)


def load_roster(path: Path) -> int:
    """Bring the couriers in line with the file; return how many it holds."""
    try:
        couriers = _CourierSchema(many=True).loads(path.read_text())
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise WaybillError(f"{path}: {error}. Correct the file and load it again.") from error
    with get_database("delivery").transaction() as session:
        known = {courier.id: courier for courier in session.scalars(select(Courier).with_for_update())}
        for entry in couriers:
            courier = known.get(entry["id"])
            if courier is None:
                session.add(Courier(**entry))
            else:
                courier.name, courier.area = entry["name"], entry["area"]
                courier.capacity, courier.active = entry["capacity"], entry["active"]
    return len(couriers)


def main() -> int:
    """Run from the command line."""
    if len(sys.argv) != _ARGUMENTS:
        sys.stderr.write("usage: python -m workers.delivery.roster FILE\n")
        return 2
    try:
        count = load_roster(Path(sys.argv[1]))
    except WaybillError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} couriers loaded\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
