"""A folder of videos scored by VBench, dimension by dimension; finished work is not repeated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hiar.errors import RunFailed, UserError
from hiar.io.files import file_hash, remove, writing
from hiar.io.names import tell_of_others
from hiar.io.progress import tell
from hiar.vbench.across import BRANCHES, SUFFIX, VERSIONS
from hiar.vbench.asking import alone_on
from hiar.vbench.clips import clip_folder
from hiar.vbench.dimensions import (
    DIMENSIONS,
    FLICKERING,
    FLICKERING_SAMPLES,
    LONG,
    PROTOCOLS,
    SAMPLES,
    STATIC_FILTER,
    known_dimensions,
)
from hiar.vbench.doctor import Finding, examine, require_runnable
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.pieces import by_name, chosen_videos, clips_of, first_frames, whole_videos
from hiar.vbench.side_by_side import side_by_side
from hiar.vbench.suite import Entry, read_suite, wanted
from hiar.vbench.task import Task, leave_value
from hiar.vbench.videos import Video, generated_with, is_standard, protocol_of, read_videos
from hiar.vbench.weights import weights_folder


class Scores(NamedTuple):
    """values: of the dimensions that were scored. failed: the errors of the others."""

    values: dict[str, float]
    failed: dict[str, str]


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
    static_filter: bool = False,
) -> Scores:
    """Score the videos in ``folder``; write each dimension's value to DIMENSION.json in ``out``, beside its records.

    dimensions: None takes all that run here and suit the videos. prompts: see `hiar.vbench.videos.read_videos`.
    devices: of one kind; each scores one dimension at a time. protocol: None decides by the videos' length. generated:
    with ``short`` or ``extended`` prompts, which is recorded; None takes what the folder records. within_clips: score
    long videos' consistencies by the slow branch alone (`hiar.vbench.across`). static_filter: of temporal_flickering's
    videos, score only those that VBench's filter finds static, five per prompt, of at most 25.
    A dimension that fails is in ``failed``; the others go on. Raises UserError, before anything is scored, when
    dimensions, environment, weights, videos or prompts do not fit.
    """
    named = None if dimensions is None else known_dimensions(dimensions)
    if protocol not in (None, *PROTOCOLS):
        raise UserError(f"--protocol = {protocol}: is not one of {', '.join(PROTOCOLS)}; choose one of them")
    for device in devices:
        if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
            raise UserError(f"--device = {device}: is not a device that VBench knows; give cpu, cuda or cuda:N")
        alone_on(device)
    kind, *others = sorted({device.partition(":")[0] for device in devices})
    if others:
        raise UserError(f"--device = {', '.join(devices)}: GPUs and CPUs give different values; give only one kind")
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
    beside = {name: name + SUFFIX for name in names if name in BRANCHES and long and not within_clips}
    if static_filter:
        if not standard or FLICKERING not in names:
            raise UserError(f"--static-filter: is for {FLICKERING} of VBench's own prompts; leave it out")
        beside[FLICKERING] = STATIC_FILTER
    also = dict(zip(beside, examine(where, weights, beside.values()), strict=True))
    if named:
        require_runnable([*findings, *also.values()])
    else:
        findings = _runnable(findings, also)
    hashes = {video.path: file_hash(video.path) for video in videos}
    with writing(out), clip_folder(out) as clips:
        tasks = []
        for finding in findings:
            name = finding.dimension
            filtered = static_filter and name == FLICKERING
            most = FLICKERING_SAMPLES if filtered else SAMPLES
            chosen = chosen_videos(name, videos, suite, most) if standard else [(video, {}) for video in videos]
            if not chosen:
                tell(f"{name}: none of the videos is of its prompts; left out")
                continue
            expected = SAMPLES * len(wanted(suite, [name])) if standard else len(chosen)
            asked = suite if standard else []
            chosen = by_name(chosen) if filtered else chosen
            pieces = clips_of(chosen, hashes, asked, clips) if long else whole_videos(chosen, hashes)
            count = {"videos": len(chosen), "of": expected}
            task = Task(name, where, weights, out, pieces, count, facts | {"weights": finding.weights})
            if filtered:
                noted = facts | {"weights": also[name].weights}
                task = task._replace(still=task._replace(dimension=STATIC_FILTER, facts=noted))
            elif name in also:
                noted = facts | {"weights": also[name].weights, "versions": where.versions(VERSIONS)}
                firsts = first_frames(pieces)
                task = task._replace(across=task._replace(dimension=name + SUFFIX, pieces=firsts, facts=noted))
            tasks.append(task)
        for task in tasks:
            remove(task.result)  # an old value may be of other videos
        found = dict(zip((task.dimension for task in tasks), side_by_side(tasks, devices, leave_value), strict=True))
    failed = {name: str(value) for name, value in found.items() if isinstance(value, RunFailed)}
    return Scores({name: value for name, value in found.items() if not isinstance(value, RunFailed)}, failed)


def check_folder(folder: Path, dimensions: Iterable[str]) -> None:
    """Raise UserError where `score_folder` would refuse videos or named dimensions, to call before other work."""
    where, named = find_environment(default_folder()), known_dimensions(dimensions)
    suite = read_suite(where.suite)
    videos = read_videos(folder, suite)
    if named:
        _check_suitable(named, videos, is_standard(videos, suite), suite)
        require_runnable(examine(where, weights_folder(), named))


def _runnable(findings: Iterable[Finding], also: Mapping[str, Finding]) -> list[Finding]:
    """The findings without problems of their own or in ``also``; a message names each of the others."""
    found = []
    for finding in findings:
        beside = also.get(finding.dimension)
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
                f"{name}: needs the suite's annotations of its prompts, and '{other.prompt[:60]}' of "
                f"{other.path.name} is not one of them; leave the dimension out, or sample `hiar vbench prompts`"
            )
        if standard and not chosen_videos(name, videos, suite):
            raise UserError(f"{name}: none of the videos is of its prompts; `hiar vbench prompts {name}` lists them")
