"""The dead-letter desk: ``celery -A workers dlq``. What an operator uses after a provider's outage."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from celery import Celery

from shared.deadletters import archive, moves, remote, views
from shared.deadletters.desk import OrderRecords
from shared.deadletters.options import JSON, File, Rate, counting, filters, one_line, say
from shared.deadletters.requeueing import requeue_found
from shared.deadletters.selection import Found, Selection, find, queues_of
from shared.errors import WaybillError
from shared.messaging.app import declare_topology
from shared.settings import get_settings


def _in_queue(app: Celery, records: OrderRecords, queue: str | None, selection: Selection) -> list[Found]:
    """Find what is in a queue, or in all; ``WaybillError`` for nothing, unless nothing at all was asked for."""
    found = find(app, records, queues_of(queue), selection)
    if not found and not selection.is_everything:
        raise WaybillError(f"{queue or 'all queues'}: no dead letter is like that. `dlq list` shows what there is.")
    if not found and queue:
        raise WaybillError(f"{queue}: no dead letters.")
    return found


def _by_id(app: Celery, records: OrderRecords, *ids: str) -> list[Found]:
    """Find every letter with these ids; several may have the same."""
    return find(app, records, queues_of(None), Selection(ids=frozenset(ids)))


def _chosen(
    app: Celery, records: OrderRecords, what: tuple[str, ...], every: bool, selection: Selection
) -> list[Found]:
    """Find what the arguments mean: ids, or ``--all`` with at most one queue."""
    if not every and not what:
        raise click.UsageError("say which: ID..., or --all [QUEUE]")
    if every and len(what) > 1:
        raise click.UsageError("--all takes at most one QUEUE")
    if every:
        return _in_queue(app, records, what[0] if what else None, selection)
    if not selection.is_everything:
        raise click.UsageError("--task, --error, --order, --since and --before go with --all")
    return _by_id(app, records, *what)


def make_commands(records: OrderRecords) -> click.Group:
    """Return the ``dlq`` group that asks ``records`` about orders."""

    @click.group()
    @click.pass_context
    def dlq(context: click.Context) -> None:
        """See, repair and put back what the workers could not process.

        Example: celery -A workers dlq list
        """
        served = remote.address_file(get_settings())
        if get_settings().embedded and served.exists() and not remote.is_here():
            raise SystemExit(remote.forward(served, sys.argv[sys.argv.index("dlq") + 1 :]))
        context.obj = context.obj.app
        with one_line():
            declare_topology(context.obj)

    @dlq.command("list")
    @click.argument("queue", required=False)
    @filters
    @JSON
    @click.pass_obj
    def list_(app: Celery, queue: str | None, selection: Selection, as_json: bool) -> None:
        """List the dead letters: a summary of every queue, or those of QUEUE, a line each.

        Example: celery -A workers dlq list payments --since 2h
        """
        with one_line():
            found = _in_queue(app, records, queue, selection)
            if as_json:
                click.echo(json.dumps([views.as_json(each) for each in found], indent=2))
            else:
                (views.letters if queue else views.summary)(found)

    @dlq.command()
    @click.argument("id")
    @click.option("--body", is_flag=True, help="Show the body as well, tokens masked.")
    @JSON
    @click.pass_obj
    def show(app: Celery, id: str, body: bool, as_json: bool) -> None:
        """Show one dead letter: headers, error, its order's timeline, what is left of the chain.

        Example: celery -A workers dlq show 1b8f3e0c-... --body
        """
        with one_line():
            details = [views.details(each, records, body=body) for each in _by_id(app, records, id)]
        if as_json:
            click.echo(json.dumps(details, indent=2, default=str))
        else:
            for each in details:
                views.one(each)

    @dlq.command()
    @click.argument("what", nargs=-1)
    @click.option("--all", "every", is_flag=True, help="Every dead letter of QUEUE, or of every queue without one.")
    @filters
    @click.option("--dry-run", is_flag=True, help="Only say what would be put back.")
    @click.option("--rate", type=Rate(), help="At most so many a second: 20 or 20/s.")
    @click.option("--canary", type=click.IntRange(min=1), help="Put so many back first, go on only if they succeed.")
    @click.option("--canary-timeout", type=click.IntRange(min=1), default=60, show_default=True, help="Seconds.")
    @JSON
    @click.pass_obj
    def requeue(app: Celery, /, what: tuple[str, ...], every: bool, selection: Selection, **options: Any) -> None:
        """Put dead letters back to their queue; each order goes on where it stopped.

        Example: celery -A workers dlq requeue --all payments --since 2h --canary 3 --rate 20/s
        """
        with one_line():
            found = _chosen(app, records, what, every, selection)
            requeue_found(app, records, found, asked_by_id=not every, **options)

    @dlq.command()
    @click.argument("id")
    @click.option("--print", "print_", is_flag=True, hidden=True, help="Only print it; for an editor elsewhere.")
    @click.option("--text", hidden=True, help="What that editor made of it.")
    @JSON
    @click.pass_obj
    def edit(app: Celery, id: str, print_: bool, text: str | None, as_json: bool) -> None:
        """Open a dead letter's waybill in $EDITOR, check it, put it back.

        Example: EDITOR=vi celery -A workers dlq edit 1b8f3e0c-...
        """
        with one_line():
            found = _by_id(app, records, id)
            if len({each.letter.queue for each in found}) > 1:
                raise WaybillError(f"{id}: there are several in different queues. Use `dlq export` or `dlq drop`.")
            letter = found[0].letter
            waybill = moves.editable(letter)
            if print_:
                click.echo(waybill)
                return
            edited = click.edit(waybill, extension=".json") if text is None else text
            if edited is None:
                raise WaybillError(f"{id}: not saved, so nothing was changed.")
            moves.requeue_edited(app, records, letter, edited, copies=len(found))
        say({"edited": id, "count": len(found)}, f"{id}: put back to {letter.queue}", as_json=as_json)

    @dlq.command()
    @click.argument("ids", nargs=-1, required=True)
    @click.option("--reason", required=True, help="Why; it is on the order's timeline.")
    @click.option("--export", "file", type=File(), help="Where to keep them [default: under VAR_DIR].")
    @JSON
    @click.pass_obj
    def drop(app: Celery, ids: tuple[str, ...], reason: str, file: Path | None, as_json: bool) -> None:
        """Take dead letters out for good: exported first, their orders cancelled and undone.

        Example: celery -A workers dlq drop 1b8f3e0c-... --reason "customer called"
        """
        with one_line():
            found = [each.letter for each in _by_id(app, records, *ids)]
            kept = file or moves.new_export()
            cancelled: set[str] = set()
            with counting(len(found), "dropped", f"still dead letters; {kept} has all of them") as done:
                moves.drop(app, records, found, reason, kept, done=done, cancelled=cancelled)
        data = {"dropped": len(found), "export": str(kept), "cancelled": sorted(cancelled)}
        text = f"{len(found)} dropped, kept in {kept}; orders cancelled: {', '.join(cancelled) or 'none'}"
        say(data, text, as_json=as_json)

    @dlq.command("export")
    @click.argument("file", type=File())
    @click.argument("queue", required=False)
    @filters
    @JSON
    @click.pass_obj
    def export(app: Celery, file: Path, queue: str | None, selection: Selection, as_json: bool) -> None:
        """Write dead letters to FILE as JSON lines; they stay where they are. The file holds personal data.

        Example: celery -A workers dlq export letters.jsonl payments
        """
        with one_line():
            found = _in_queue(app, records, queue, selection)
            archive.write(file, [each.letter for each in found])
        say({"exported": len(found), "file": str(file)}, f"{len(found)} written to {file}", as_json=as_json)

    @dlq.command("import")
    @click.argument("file", type=File())
    @JSON
    @click.pass_obj
    def import_(app: Celery, file: Path, as_json: bool) -> None:
        """Read dead letters from FILE, as `export` wrote it, back into the dead-letter queues.

        Example: celery -A workers dlq import letters.jsonl
        """
        with one_line():
            lines = archive.load(file)
            with counting(len(lines), "are dead letters again", f"only in {file}") as done:
                moves.read(app, lines, done=done)
            count = len(done)
        say({"imported": count}, f"{count} dead letters are back; `dlq requeue` puts them to work", as_json=as_json)

    return dlq
