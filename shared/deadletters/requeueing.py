"""The way back of many dead letters: a plan, canaries, the rest at a rate; interrupted, the count is true."""

import json
from collections import Counter
from typing import Any

import click
from celery import Celery

from shared.deadletters import canary as canaries
from shared.deadletters import moves, views
from shared.deadletters.desk import OrderRecords
from shared.deadletters.letters import DeadLetter
from shared.deadletters.options import counting, say
from shared.deadletters.selection import Found
from shared.errors import WaybillError


def requeue_found(
    app: Celery, records: OrderRecords, found: list[Found], *, asked_by_id: bool, dry_run: bool, **options: Any
) -> None:
    """Put back what was found; what is malformed stays, and is an error at the end, or at once if ``asked_by_id``."""
    malformed = [each.letter for each in found if each.letter.is_malformed]
    if malformed and asked_by_id:
        raise WaybillError(
            f"{malformed[0].id}: {malformed[0].reason}; it would die again. Use `dlq edit` or `dlq drop`."
        )
    good = [each for each in found if not each.letter.is_malformed]
    if dry_run:
        _show_plan(good, as_json=options["as_json"])
    else:
        _put_back(app, records, [each.letter for each in good], malformed=len(malformed), **options)
    if malformed:
        raise WaybillError(
            f"{len(malformed)} malformed dead letters stay; see `dlq list`, then `dlq edit` or `dlq drop`."
        )


def _show_plan(good: list[Found], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([views.as_json(each) for each in good], indent=2))
        return
    views.letters(good)
    click.echo(f"{len(good)} would be put back")


def _put_back(
    app: Celery,
    records: OrderRecords,
    letters: list[DeadLetter],
    *,
    malformed: int,
    rate: float | None,
    canary: int | None,
    canary_timeout: int,
    as_json: bool,
) -> None:
    with counting(len(letters), "put back") as done:
        if canary:
            first = canaries.choose(records, letters, canary)
            canaries.send(app, records, first, timeout=canary_timeout, done=done)
        rest = [letter for letter in letters if letter.id not in set(done)]
        with views.progress(len(rest), "putting back") as step:
            for letter in moves.requeue(app, records, rest, pause=1 / rate if rate else 0):
                done.append(letter.id)
                step()
    queues = Counter(letter.queue for letter in letters)
    say({"requeued": len(done), "queues": queues, "malformed": malformed}, f"{len(done)} put back", as_json=as_json)
