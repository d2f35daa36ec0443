"""Scoring one dimension: the known records, the requests for missing ones, and the resulting value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiar.errors import RunFailed
from hiar.io.files import write_json
from hiar.io.progress import Progress, tell
from hiar.vbench.across import BOTH, BRANCHES, WITHIN, both_branches, read_table
from hiar.vbench.asking import ask
from hiar.vbench.dimensions import LONG, SAMPLES
from hiar.vbench.environment import Environment
from hiar.vbench.pieces import Piece
from hiar.vbench.records import Records, open_records, records_path
from hiar.vbench.side_by_side import Workers
from hiar.vbench.values import dimension_value, long_values, mean


class Task(NamedTuple):
    """One dimension. counts: ``videos`` scored, ``of`` how many. facts: recorded beside its value.

    across: the task for the first frames of long videos' clips, where that is a part of the value.
    still: the task that filters the pieces first, where only static ones are scored.
    """

    dimension: str
    environment: Environment
    weights: Path
    out: Path
    pieces: Sequence[Piece]
    counts: dict[str, int]
    facts: dict[str, Any]
    across: Task | None = None
    still: Task | None = None

    @property
    def result(self) -> Path:
        """The file of its value."""
        return self.out / f"{self.dimension}.json"

    @property
    def decides(self) -> dict[str, Any]:
        """What its records depend on."""
        return {field: self.facts[field] for field in ("protocol", "device", "weights", "versions")}


def leave_value(task: Task, device: str, workers: Workers) -> float | RunFailed:
    """The value of one dimension, also written to the folder of results, or the error that prevented it."""
    try:
        value, by_video = _score(task, device, workers)
    except RunFailed as error:
        tell(f"error: {error}")
        return error
    facts = dict(task.facts)
    if task.facts["protocol"] == LONG and task.dimension in BRANCHES:
        facts["consistency"] = BOTH if task.across else WITHIN
    for beside in filter(None, (task.across, task.still)):
        facts |= {field: {**facts[field], **beside.facts[field]} for field in ("weights", "versions")}
    counts = task.counts
    if task.still:
        facts["static_filter"], counts = True, counts | {"videos": len(by_video)}
    result = {"dimension": task.dimension, "value": value, **counts, **facts, "by_video": by_video}
    write_json(task.result, result)
    if counts["videos"] < counts["of"]:
        of = f"{counts['videos']} of the suite's {counts['of']} videos"
        tell(f"{task.dimension}: {of}, so its value is not comparable with the leaderboard")
    return value


def _score(task: Task, device: str, workers: Workers) -> tuple[float, dict[str, float | None]]:
    """The value of one dimension, and of each of its videos by name; None where VBench gives a video none."""
    if task.still:
        task = task._replace(pieces=_still(task.still, device, workers))
    known = _records(task, device, workers)
    if task.facts["protocol"] != LONG:
        value = dimension_value(task.dimension, [one for fields in known.values() for one in fields])
        by_video = {video: fields[0]["video_results"] for video, fields in known.items() if fields}
    else:
        value, by_video = long_values(task.dimension, known)
        if task.across:
            table = read_table(task.weights / BRANCHES[task.dimension].table)
            across = _records(task.across, device, workers) if task.across.pieces else {}
            alike = {video: fields[0]["video_results"] for video, fields in across.items()}
            by_video = {video: both_branches(own, alike.get(video), table) for video, own in by_video.items()}
            value = mean(list(by_video.values()))
    return value, {video: by_video.get(video) for video in known}


def _records(task: Task, device: str, workers: Workers) -> dict[str, list[dict[str, Any]]]:
    """VBench's records of each video, or of each of its clips, by the video's name; a video may have none.

    Raises RunFailed when none has any.
    """
    pieces = task.pieces
    with open_records(task.out, task.dimension, task.decides) as records:
        _ask_for_missing(task, records, device, workers)
        known: dict[str, list[dict[str, Any]]] = {piece.video: [] for piece in pieces}
        for piece in pieces:
            if (fields := records.known[piece.key]) is not None:
                known[piece.video].append(fields)
    if not any(known.values()):
        where = records_path(task.out, task.dimension)
        raise RunFailed(f"{task.dimension}: VBench gives a value for none of the {len(known)} videos; see {where}")
    return known


def _still(task: Task, device: str, workers: Workers) -> list[Piece]:
    """The first videos, or clips, of each prompt that the filter finds static, at most SAMPLES.

    As in VBench, it checks no more of a prompt than needed to find them. Raises RunFailed when it finds none.
    """
    waiting: dict[str, list[Piece]] = {}
    found: list[Piece] = []
    for piece in task.pieces:
        waiting.setdefault(piece.item.prompt, []).append(piece)
    missing = dict.fromkeys(waiting, SAMPLES)
    with open_records(task.out, task.dimension, task.decides) as records:
        while looked_at := [piece for prompt, pieces in waiting.items() for piece in pieces[: missing[prompt]]]:
            _ask_for_missing(task._replace(pieces=looked_at), records, device, workers)
            waiting = {prompt: pieces[missing[prompt] :] for prompt, pieces in waiting.items()}
            for piece in looked_at:
                if (fields := records.known[piece.key]) and fields["video_results"]:
                    found.append(piece)
                    missing[piece.item.prompt] -= 1
    if short := [prompt for prompt, count in missing.items() if count]:
        few = f"{len(short)} of {len(missing)} prompts have fewer than {SAMPLES} still videos"
        tell(f"{task.dimension}: {few}, such as '{short[0]}'")
    if not found:
        raise RunFailed(f"{task.dimension}: none of the {len(task.pieces)} videos is still: there is nothing to score")
    return found


def _ask_for_missing(task: Task, records: Records, device: str, workers: Workers) -> None:
    missing = list({piece.key: piece for piece in task.pieces if piece.key not in records.known}.values())
    if not missing:
        return
    name, log = task.dimension, task.out / "logs" / f"{task.dimension}.log"
    items = [piece.item for piece in missing]
    count = len(task.pieces)
    with Progress(name, count, start=count - len(missing), unit="videos") as progress:
        for number, fields in ask(task.environment, task.weights, name, items, device, log, workers.add):
            if number is None:
                progress.advance()
                continue
            piece = missing[number]
            if fields is not None and not math.isfinite(fields["video_results"]):
                raise RunFailed(f"{name}: VBench's value of {piece.video} is {fields['video_results']}; see {log}")
            records.add(piece.key, piece.video, fields)
