"""Garbage collection of a store: everything that belongs to no kept run may be deleted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from hiar.errors import UserError
from hiar.report.columns import leading, rank
from hiar.storage.runs import (
    LOCK,
    OBJECT,
    RECORD,
    Run,
    key_of,
    members,
    outs_of,
    record_of,
    runs_committed,
    runs_here,
    runs_stored,
    stages_of,
)
from hiar.storage.store import Store, Stored, asking, content, each, listing, unfinished_uploads

SUMMARY = "metrics/summary.json"
BATCH = 1000  # keys per delete request


@dataclass(frozen=True)
class Kept:
    """A run, why it is kept (empty: it is not), and the metric by which runs are compared, with its value."""

    run: Run
    why: str
    metric: str | None = None
    figure: float | None = None


@dataclass(frozen=True)
class Plan:
    """The runs, the keys that may be deleted with their sizes in bytes, and unfinished uploads.

    ``named``: when each lock and record that existed was written.
    """

    runs: Sequence[Kept]
    delete: Mapping[str, int]
    uploads: Sequence[Mapping[str, Any]]
    named: Mapping[str, datetime]


def plan(store: Store, root: Path, *, last: int, best: str | None, days: float) -> Plan:
    """What is kept and what may be deleted, of all experiments.

    Kept are runs named by a commit (a milestone is a tag), those in this working tree, and in the store, of each
    experiment, the ``last`` runs and the one with the best mean over distilled models of ``best`` (a metric; None: the
    first of `hiar.report.columns.LEADING` that the experiment has). Also kept is everything stored in the last
    ``days``, or named by a record stored since then: a run in progress renews the records of the stages that it
    fetches, and stores its lock only at its end.

    Raises UserError when the store or the commits cannot be read, or what is kept is damaged: nothing may be deleted
    then.
    """
    listed = listing(store)
    stored, damaged = runs_stored(store, listed)
    if damaged:
        raise UserError(f"{store.url}/{damaged[0]}: is damaged, so nothing is deleted; see `hiar storage verify`")
    named = [*runs_committed(root), *runs_here(root)]
    since = datetime.now(UTC) - timedelta(days=days)
    runs = [Kept(run, run.place) for run in named if not any(run.stages == one.stages for one in stored)]
    runs += _chosen(store, stored, named, listed, last, best, since)
    wanted = {key_of(out["md5"]) for kept in runs if kept.why for out in kept.run.outs()}
    recent = {key for key, one in listed.items() if one.modified >= since}
    records = {key: _record(store, key) for key in listed if RECORD.fullmatch(key)}
    for key in recent & records.keys():
        wanted |= {key_of(out["md5"]) for out in outs_of(records[key])}
    wanted |= _inside(store, wanted & listed.keys())
    going = {kept.run.place for kept in runs if not kept.why}
    going |= {key for key, record in records.items() if not {key_of(out["md5"]) for out in outs_of(record)} <= wanted}
    going |= {key for key in listed if OBJECT.fullmatch(key) and key not in wanted}
    uploads = [upload for upload in unfinished_uploads(store) if upload["Initiated"] < since]
    sizes = {key: listed[key].size for key in sorted(going - recent)}
    return Plan(runs, sizes, uploads, _named(listed))


def delete(store: Store, plan: Plan) -> None:
    """Delete what a plan allows, locks and records before the objects that they name, so that no name ever dangles.

    Objects named by a run since the plan was made are kept: it found them in the store and did not upload them again.
    """
    names = {key for key in plan.delete if not OBJECT.fullmatch(key)}
    _delete(store, sorted(names - _since(plan, listing(store))))
    listed = listing(store)
    wanted = set()
    for key in _since(plan, listed):
        stages = [_record(store, key)] if RECORD.fullmatch(key) else stages_of(content(store, key), key).values()
        wanted |= {key_of(out["md5"]) for record in stages for out in outs_of(record)}
    wanted |= _inside(store, wanted & listed.keys())
    _delete(store, [key for key in plan.delete if OBJECT.fullmatch(key) and key not in wanted])
    with asking(store):
        for upload in plan.uploads:
            store.client.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _delete(store: Store, keys: Sequence[str]) -> None:
    with asking(store):
        for start in range(0, len(keys), BATCH):
            batch = [{"Key": store.prefix + key} for key in keys[start : start + BATCH]]
            said = store.client.delete_objects(Bucket=store.bucket, Delete={"Objects": batch, "Quiet": True})
            if errors := said.get("Errors"):
                raise UserError(f"{store.url}: {len(errors)} objects were not deleted ({errors[0].get('Code')})")


def _named(listed: Mapping[str, Stored]) -> dict[str, datetime]:
    """The time at which each lock and record was written."""
    return {key: one.modified for key, one in listed.items() if LOCK.fullmatch(key) or RECORD.fullmatch(key)}


def _since(plan: Plan, listed: Mapping[str, Stored]) -> set[str]:
    """The locks and records written or rewritten since the plan was made."""
    return {key for key, modified in _named(listed).items() if plan.named.get(key) != modified}


def _inside(store: Store, keys: Iterable[str]) -> set[str]:
    """The keys of the files in the folders among these objects. Raises UserError for a damaged list of files."""
    found = set[str]()
    folders = [key for key in keys if key.endswith(".dir")]
    for key, data in zip(folders, each(lambda key: content(store, key), folders), strict=True):
        entries = members(data)
        if entries is None:
            raise UserError(f"{store.url}/{key}: is damaged, so nothing is deleted; see `hiar storage verify`")
        found |= {key_of(name) for _, name in entries}
    return found


def _chosen(
    store: Store,
    stored: Sequence[Run],
    named: Sequence[Run],
    listed: Mapping[str, Stored],
    last: int,
    best: str | None,
    since: datetime,
) -> Iterator[Kept]:
    """The runs in the store, by experiment, newest first, with the reasons for which they are kept."""
    by_experiment: dict[str, list[Run]] = defaultdict(list)
    for run in stored:
        by_experiment[run.experiment].append(run)
    for runs in by_experiment.values():
        figures = [figures_of(store, run, listed) for run in runs]
        metric = best or leading({name for known in figures for name in known})
        values = [known.get(metric or "") for known in figures]
        top = max((rank(str(metric), value) for value in values if value is not None), default=None)
        for place, (run, value) in enumerate(zip(runs, values, strict=True)):
            why = [one.place for one in named if one.stages == run.stages][:1]
            why += [f"last {last}"] if place < last else []
            why += [f"best {metric}"] if value is not None and rank(str(metric), value) == top else []
            why += ["recent"] if run.modified is not None and run.modified >= since else []
            yield Kept(run, ", ".join(why), metric, value)


def figures_of(store: Store, run: Run, listed: Mapping[str, Stored]) -> dict[str, float]:
    """The mean over a run's distilled models of each metric that all have; empty without a readable summary."""
    keys = [key_of(out["md5"]) for out in run.outs() if out.get("path") == SUMMARY]
    if not keys or keys[0] not in listed:
        return {}
    try:
        methods = json.loads(content(store, keys[0]))["distill"].values()
        models = [metrics for seeds in methods for metrics in seeds.values()]
        shared = set.intersection(*(set(metrics) for metrics in models)) if models else set()
        return {name: fmean(float(metrics[name]["mean"]) for metrics in models) for name in shared}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _record(store: Store, key: str) -> Any:
    """A stage's record; empty if it cannot be read, so that it keeps nothing."""
    data = content(store, key)
    try:
        return record_of(data, key)
    except UserError:
        return {}
