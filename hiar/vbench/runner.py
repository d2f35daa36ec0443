"""A folder of videos scored by VBench, dimension by dimension; what is done is not done again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiar.errors import RunFailed, UserError
from hiar.io.files import file_hash, remove, write_json, writing
from hiar.io.names import tell_of_others
from hiar.io.progress import Progress, tell
from hiar.vbench.across import BOTH, BRANCHES, SUFFIX, VERSIONS, WITHIN, both_branches, read_table
from hiar.vbench.asking import ask
from hiar.vbench.clips import clip_folder
from hiar.vbench.dimensions import DIMENSIONS, LONG, PROTOCOLS, SAMPLES, known_dimensions
from hiar.vbench.doctor import Finding, examine, require_runnable
from hiar.vbench.environment import Environment, default_folder, find_environment
from hiar.vbench.pieces import Piece, chosen_videos, clips_of, first_frames, whole_videos
from hiar.vbench.records import Records, open_records, records_path
from hiar.vbench.side_by_side import Workers, side_by_side
from hiar.vbench.suite import Entry, read_suite, wanted
from hiar.vbench.values import dimension_value, long_values, mean
from hiar.vbench.videos import Video, generated_with, is_standard, protocol_of, read_videos
from hiar.vbench.weights import weights_folder


class Scores(NamedTuple):
    """values: of the dimensions that were scored. failed: of the others, what happened."""

    values: dict[str, float]
    failed: dict[str, str]


class _Task(NamedTuple):
    """One dimension. counts: of its videos, and of how many. facts: what is noted beside its value.

    across: what is asked about the first frames of the clips of long videos, where that is a part of the value.
    """

    dimension: str
    environment: Environment
    weights: Path
    out: Path
    pieces: Sequence[Piece]
    counts: dict[str, int]
    facts: dict[str, Any]
    across: _Task | None = None

    @property
    def result(self) -> Path:
        return self.out / f"{self.dimension}.json"


def score_folder(
    folder: Path,
    dimensions: Iterable[str] | None,
    out: Path,
    *,
    prompts: Path | None = None,
    protocol: str | None = None,
    devices: Sequence[str] = ("cpu",),
    generated: str | None = None,
    environment: Path | None = None,
    weights: Path | None = None,
    within_clips: bool = False,
) -> Scores:
    """Score the videos of ``folder``; leave a value a dimension in ``out``, DIMENSION.json, beside its records.

    dimensions: None takes all that run here and suit the videos. prompts: as `hiar.vbench.videos.read_videos` says.
    devices: of one kind; as many dimensions are scored at once. protocol: None goes by the videos' length. generated:
    with ``short`` or ``extended`` prompts, which is noted; None goes by what the folder says. within_clips: of long
    videos' consistencies the slow branch alone (`hiar.vbench.across`).
    A dimension that breaks down is in ``failed``; the others go on. Raises UserError, before anything is scored, for
    what does not fit: dimensions, environment, weights, videos, prompts.
    """
    named = None if dimensions is None else known_dimensions(dimensions)
    if protocol not in (None, *PROTOCOLS):
        raise UserError(f"--protocol = {protocol}: is none of {', '.join(PROTOCOLS)}; choose one of them")
    for device in devices:
        if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
            raise UserError(f"--device = {device}: is no device of VBench's; give cpu, cuda or cuda:N")
    kind, *others = sorted({device.partition(":")[0] for device in devices})
    if others:
        raise UserError(f"--device = {', '.join(devices)}: are of two kinds, whose values differ; give GPUs or cpu")
    where = find_environment(environment or default_folder())
    weights = weights or weights_folder()
    suite = read_suite(where.suite)
    videos = read_videos(folder, suite, prompts)
    tell_of_others(folder)
    standard = is_standard(videos, suite)
    if named is not None:
        _check_suitable(named, videos, standard, suite)
    facts = {
        "protocol": protocol or protocol_of(videos),
        "prompts": "suite" if standard else "own",
        "generated_with": generated or generated_with(folder),
        "device": kind,
        "versions": where.versions(),
    }
    long = facts["protocol"] == LONG
    names = named or [name for name in DIMENSIONS if standard or not DIMENSIONS[name].described]
    findings = examine(where, weights, names)
    compared = [name + SUFFIX for name in names if name in BRANCHES and long and not within_clips]
    branches = {one.dimension.removesuffix(SUFFIX): one for one in examine(where, weights, compared)}
    if named:
        require_runnable([*findings, *branches.values()])
    else:
        findings = _runnable(findings, branches)
    hashes = {video.path: file_hash(video.path) for video in videos}
    with writing(out), clip_folder(out) as clips:
        tasks = []
        for finding in findings:
            name = finding.dimension
            chosen = chosen_videos(name, videos, suite) if standard else [(video, {}) for video in videos]
            if not chosen:
                tell(f"{name}: none of the videos is of its prompts; left out")
                continue
            expected = SAMPLES * len(wanted(suite, [name])) if standard else len(chosen)
            asked = suite if standard else []
            pieces = clips_of(chosen, hashes, asked, clips) if long else whole_videos(chosen, hashes)
            count = {"videos": len(chosen), "of": expected}
            task = _Task(name, where, weights, out, pieces, count, facts | {"weights": finding.weights})
            if name in branches:
                noted = facts | {"weights": branches[name].weights, "versions": where.versions(VERSIONS)}
                firsts = first_frames(pieces)
                task = task._replace(across=task._replace(dimension=name + SUFFIX, pieces=firsts, facts=noted))
            tasks.append(task)
        for task in tasks:
            remove(task.result)  # an old value says nothing of these videos until they are scored
        found = dict(zip((task.dimension for task in tasks), side_by_side(tasks, devices, _value), strict=True))
    failed = {name: str(value) for name, value in found.items() if isinstance(value, RunFailed)}
    return Scores({name: value for name, value in found.items() if not isinstance(value, RunFailed)}, failed)


def check_folder(folder: Path, dimensions: Iterable[str]) -> None:
    """Raise UserError for what `score_folder` would refuse of videos and named dimensions, for before other work."""
    where, named = find_environment(default_folder()), known_dimensions(dimensions)
    suite = read_suite(where.suite)
    videos = read_videos(folder, suite)
    if named:
        _check_suitable(named, videos, is_standard(videos, suite), suite)
        require_runnable(examine(where, weights_folder(), named))


def _runnable(findings: Iterable[Finding], branches: Mapping[str, Finding]) -> list[Finding]:
    """Those that lack nothing, nor does what they take beside; of the others it is told."""
    found = []
    for finding in findings:
        beside = branches.get(finding.dimension)
        if problems := finding.problems + (beside.problems if beside else ()):
            tell(f"{finding.dimension}: cannot run here and is left out: {problems[0]}")
        else:
            found.append(finding)
    return found


def _check_suitable(names: Iterable[str], videos: Sequence[Video], standard: bool, suite: Sequence[Entry]) -> None:
    for name in names:
        if DIMENSIONS[name].described and not standard:
            known = {entry.prompt for entry in suite}
            other = next(video for video in videos if video.prompt not in known)
            raise UserError(
                f"{name}: compares with what VBench's suite says beside its prompts, and '{other.prompt[:60]}' of "
                f"{other.path.name} is none of them; leave the dimension out, or sample `hiar vbench prompts`"
            )
        if standard and not chosen_videos(name, videos, suite):
            raise UserError(f"{name}: none of the videos is of its prompts; `hiar vbench prompts {name}` lists them")


def _value(task: _Task, device: str, workers: Workers) -> float | RunFailed:
    """The value of one dimension, which is left in the folder of results, or what happened to it."""
    try:
        value, by_video = _score(task, device, workers)
    except RunFailed as error:
        tell(f"error: {error}")
        return error
    facts = dict(task.facts)
    if task.facts["protocol"] == LONG and task.dimension in BRANCHES:
        facts["consistency"] = BOTH if task.across else WITHIN
    if task.across:
        facts |= {field: {**facts[field], **task.across.facts[field]} for field in ("weights", "versions")}
    result = {"dimension": task.dimension, "value": value, **task.counts, **facts, "by_video": by_video}
    write_json(task.result, result)
    if task.counts["videos"] < task.counts["of"]:
        of = f"{task.counts['videos']} of the suite's {task.counts['of']} videos"
        tell(f"{task.dimension}: {of}: no figure for a leaderboard")
    return value


def _score(task: _Task, device: str, workers: Workers) -> tuple[float, dict[str, float | None]]:
    """The value of one dimension, and of each of its videos by name; None where VBench gives a video none."""
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


def _records(task: _Task, device: str, workers: Workers) -> dict[str, list[dict[str, Any]]]:
    """What VBench says of each video, or of each of its clips, by the video's name; of one it may say nothing.

    Raises RunFailed where it says nothing of any.
    """
    pieces = task.pieces
    decides = {field: task.facts[field] for field in ("protocol", "device", "weights", "versions")}
    with open_records(task.out, task.dimension, decides) as records:
        _ask_for_missing(task, records, device, workers)
        known: dict[str, list[dict[str, Any]]] = {piece.video: [] for piece in pieces}
        for piece in pieces:
            if (fields := records.known[piece.key]) is not None:
                known[piece.video].append(fields)
    if not any(known.values()):
        where = records_path(task.out, task.dimension)
        raise RunFailed(f"{task.dimension}: VBench gives none of the {len(known)} videos a value; see {where}")
    return known


def _ask_for_missing(task: _Task, records: Records, device: str, workers: Workers) -> None:
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
