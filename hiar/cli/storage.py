"""Commands on the S3 store behind the project's DVC remote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import app, examples
from hiar.options import Once

storage = typer.Typer(help="List, check and clean up the S3 store behind the DVC remote.")
app.add_typer(storage, name="storage")

Remote = Annotated[
    str | None, typer.Option(help="A remote in .dvc/config; default: its default one.", show_default=False)
]
Last = Annotated[int, typer.Option(min=0, help="How many of each experiment's newest runs are kept.")]
Best = Annotated[
    str | None,
    typer.Option(
        help="Metric of metrics/summary.json by which each experiment's best run is kept; default: the share of good "
        "frames, else VBench's Total, else drift.",
        show_default=False,
    ),
]
Days = Annotated[
    float,
    typer.Option(
        min=0, help="Keep everything stored in so many last days; give more than any run takes from its first stage on."
    ),
]
RUN_DAYS = 14.0  # training Wan takes days, and a run names what it made only at its end


@storage.command(cls=Once, epilog=examples("hiar storage ls"))
def ls(remote: Remote = None, last: Last = 3, best: Best = None, days: Days = RUN_DAYS) -> None:
    """List the runs that the store or a commit names.

    Each with its time, its figure, and why `hiar storage gc` keeps it.
    """
    from hiar.storage.retention import plan
    from hiar.storage.store import listing, open_store

    store = open_store(Path(), remote)
    found = plan(store, Path(), last=last, best=best, days=days)
    rows = [("experiment", "stored", "figure", "stages", "kept as")]
    for kept in found.runs:
        when = "" if kept.run.modified is None else f"{kept.run.modified:%Y-%m-%d %H:%M}"
        value = "" if kept.figure is None else f"{kept.metric} {kept.figure:.4g}"
        rows.append((kept.run.experiment, when, value, str(len(kept.run.stages)), kept.why or "- (gc deletes it)"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    stored = listing(store)
    print(f"{store.url}: {len(stored)} objects, {_size(sum(one.size for one in stored.values()))}")


@storage.command(
    cls=Once,
    epilog=examples(
        "hiar storage gc                  # what would be deleted",
        "hiar storage gc --last 5 --delete",
    ),
)
def gc(
    remote: Remote = None,
    last: Last = 3,
    best: Best = None,
    days: Days = RUN_DAYS,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without this nothing is deleted.")] = False,
) -> None:
    """Delete objects that belong to no kept run.

    Kept are the newest runs, the best ones, and all that a commit or tag names. Only lists what would go, unless
    --delete is given. Fetch all branches first: commits of other clones count only if they are here.
    """
    from hiar.storage.retention import delete as delete_planned
    from hiar.storage.retention import plan
    from hiar.storage.store import open_store

    store = open_store(Path(), remote)
    found = plan(store, Path(), last=last, best=best, days=days)
    for kept in found.runs:
        if not kept.why:
            print(f"run of {kept.run.experiment}, stored {kept.run.modified:%Y-%m-%d %H:%M}: is not kept")
    what = f"{len(found.delete)} objects, {_size(sum(found.delete.values()))}, {len(found.uploads)} unfinished uploads"
    if not delete:
        print(f"{store.url}: {what} would be deleted; add --delete to delete them")
        return
    delete_planned(store, found)
    print(f"{store.url}: {what} deleted")


@storage.command(cls=Once, epilog=examples("hiar storage verify"))
def verify(remote: Remote = None) -> None:
    """Read the whole store and report damaged objects.

    They are missing, truncated, altered, surplus or half uploaded; the exit code is then 1. While somebody pushes,
    objects on their way may be reported as surplus or unfinished.
    """
    from hiar.storage.store import open_store
    from hiar.storage.verify import verify as verify_store

    store = open_store(Path(), remote)
    damages, looked_at = verify_store(store, Path())
    for damage in damages:
        print(f"{damage.kind:10} {damage.key}: {damage.said}")
    print(f"{store.url}: {looked_at} objects, {len(damages)} damaged")
    raise typer.Exit(1 if damages else 0)


@storage.command(cls=Once, epilog=examples("hiar storage report smoke", "hiar storage report --days 1"))
def report(
    experiment: Annotated[
        str | None, typer.Argument(help="As in `hiar run`; default: the default experiment.", show_default=False)
    ] = None,
    remote: Remote = None,
    days: Annotated[float, typer.Option(min=0.001, max=7.0, help="Days for which the links work, at most 7.")] = 7.0,
) -> None:
    """Upload an experiment's report and print links to it.

    Anyone who has a link can open it.
    """
    from hiar.storage.reports import share_report
    from hiar.storage.store import open_store

    for name, link in share_report(open_store(Path(), remote), Path(), experiment, days):
        print(f"{name}: {link}")


def _size(count: float) -> str:
    """A number of bytes in a readable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # three digits of more would be 1e+03
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
