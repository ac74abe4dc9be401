"""The payment provider's ledger: what really happened to money, kept apart from everything of ours.

Append-only, in SQLite; an entry is committed before the request is answered. Amounts are minor units (cents).
"""

import json
import sqlite3
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DECLINES = {"tok_declined": "card_declined", "tok_insufficient_funds": "insufficient_funds"}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL CHECK (kind IN ('charge', 'refund', 'reversal')),
  idempotency_key TEXT NOT NULL UNIQUE,
  transaction_id TEXT NOT NULL,
  amount_cents INTEGER NOT NULL,
  currency TEXT NOT NULL,
  payment_method TEXT NOT NULL,
  time TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_transaction ON entries (transaction_id);
CREATE TABLE IF NOT EXISTS answers (
  idempotency_key TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  status INTEGER NOT NULL,
  body TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered; stored by its key, and given again."""

    status: int
    body: dict[str, Any]


CONFLICT = Answer(409, {"detail": "IDEMPOTENCY_CONFLICT"})


class Ledger:
    """The ledger in a file, or in memory for ``":memory:"``. Any thread may use it; one does at a time."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file, after what is being written."""
        with self._lock:
            self._db.close()

    def charge(self, key: str, body: dict[str, Any], *, decline: str | None) -> Answer:
        """Charge once for each key; ``decline`` is the reason to refuse it, None to take it."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if stored := self._stored(key, body):
                return stored
            if decline:
                return self._answer(key, body, Answer(402, {"detail": "PAYMENT_FAILED", "code": decline}))
            transaction_id = f"txn_{uuid.uuid4().hex}"
            self._append("charge", key, transaction_id, body)
            return self._answer(key, body, Answer(200, {"charged": True, "transaction_id": transaction_id}))

    def refund(self, key: str, body: dict[str, Any]) -> Answer:
        """Give a charge back, once for each key, never more than was captured."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if stored := self._stored(key, body):
                return stored
            charge = self._charge_of(body["transaction_id"])
            if charge is None:
                return Answer(404, {"detail": "NOT_FOUND"})
            amount = body.get("amount_cents") or charge["amount_cents"]
            if self._refunded(charge["transaction_id"]) + amount > charge["amount_cents"]:
                return Answer(409, {"detail": "ALREADY_REFUNDED"})
            self._append("refund", key, charge["transaction_id"], {**dict(charge), "amount_cents": amount})
            refund = {"refunded": True, "refund_id": f"ref_{uuid.uuid4().hex}", "amount_cents": amount}
            return self._answer(key, body, Answer(200, refund))

    def reverse(self, transaction_id: str) -> Answer:
        """Take the whole charge back, as the customer's bank does in a chargeback; only once."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            charge = self._charge_of(transaction_id)
            if charge is None:
                return Answer(404, {"detail": "NOT_FOUND"})
            if self._refunded(transaction_id):
                return Answer(409, {"detail": "ALREADY_REFUNDED"})
            self._append("reversal", f"reversal-{transaction_id}", transaction_id, dict(charge))
            return Answer(200, {"reversed": True, "amount_cents": charge["amount_cents"]})

    def lookup(self, key: str) -> dict[str, Any] | None:
        """Return what became of a charge, None when its key was never settled or is a refund's."""
        with self._lock:
            row = self._db.execute("SELECT * FROM answers WHERE idempotency_key = ?", (key,)).fetchone()
            asked, answer = (json.loads(row["fingerprint"]), json.loads(row["body"])) if row else ({}, {})
            if "payment_method" not in asked:
                return None
            transaction_id = answer.get("transaction_id")
            return {
                "status": "captured" if transaction_id else "declined",
                "transaction_id": transaction_id,
                "amount_cents": asked["amount_cents"],
                "currency": asked["currency"],
                "refunded_cents": self._refunded(transaction_id),
                "code": answer.get("code"),
            }

    def statement(self, after: int = 0, limit: int = -1) -> dict[str, Any]:
        """Return entries and totals of one moment, so that they agree while charges go on."""
        with self._lock:
            return {"entries": self.entries(after, limit), "totals": self.totals()}

    def entries(self, after: int = 0, limit: int = -1) -> list[dict[str, Any]]:
        """Return the charges, refunds and reversals in order, those after the sequence number ``after``."""
        query = "SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._lock:
            return [dict(row) for row in self._db.execute(query, (after, limit))]

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the sums for each currency."""
        query = """
            SELECT currency, COALESCE(SUM(amount_cents) FILTER (WHERE kind = 'charge'), 0) AS captured_cents,
                   COALESCE(SUM(amount_cents) FILTER (WHERE kind <> 'charge'), 0) AS refunded_cents
            FROM entries GROUP BY currency"""
        with self._lock:
            rows = self._db.execute(query).fetchall()
        return {
            row["currency"]: {
                "captured_cents": row["captured_cents"],
                "refunded_cents": row["refunded_cents"],
                "net_cents": row["captured_cents"] - row["refunded_cents"],
            }
            for row in rows
        }

    def _stored(self, key: str, body: dict[str, Any]) -> Answer | None:
        row = self._db.execute("SELECT * FROM answers WHERE idempotency_key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Answer(row["status"], json.loads(row["body"])) if row["fingerprint"] == _canonical(body) else CONFLICT

    def _answer(self, key: str, body: dict[str, Any], answer: Answer) -> Answer:
        row = (key, _canonical(body), answer.status, json.dumps(answer.body))
        self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", row)
        return answer

    def _append(self, kind: str, key: str, transaction_id: str, entry: dict[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO entries (kind, idempotency_key, transaction_id, amount_cents, currency, payment_method, time)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                kind,
                key,
                transaction_id,
                entry["amount_cents"],
                entry["currency"],
                entry["payment_method"],
                datetime.now(UTC).isoformat(),
            ),
        )

    def _charge_of(self, transaction_id: str) -> sqlite3.Row | None:
        query = "SELECT * FROM entries WHERE kind = 'charge' AND transaction_id = ?"
        return self._db.execute(query, (transaction_id,)).fetchone()  # type: ignore[no-any-return]

    def _refunded(self, transaction_id: str | None) -> int:
        query = "SELECT COALESCE(SUM(amount_cents), 0) FROM entries WHERE kind <> 'charge' AND transaction_id = ?"
        return int(self._db.execute(query, (transaction_id,)).fetchone()[0])


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)
