"""A folder of videos scored by VBench, dimension by dimension; what is done is not done again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiar.errors import RunFailed, UserError
from hiar.io.files import remove, write_json
from hiar.io.progress import Progress, tell
from hiar.vbench.asking import Item, ask
from hiar.vbench.clips import clip_frames, clip_seconds, cut
from hiar.vbench.dimensions import DIMENSIONS, SAMPLES, known_dimensions
from hiar.vbench.doctor import Finding, examine, require_runnable
from hiar.vbench.environment import Environment, default_folder, find_environment
from hiar.vbench.records import Records, open_records, records_path
from hiar.vbench.suite import Entry, read_suite, wanted
from hiar.vbench.values import dimension_value, long_values
from hiar.vbench.videos import Video, is_standard, protocol_of, read_videos
from hiar.vbench.weights import sha256, weights_folder

PROTOCOLS = ("vbench", "vbench-long")
CLIPS = ".clips"  # of long videos, in the folder of results while it fills


class Scores(NamedTuple):
    """values: of the dimensions that were scored. failed: of the others, what happened."""

    values: dict[str, float]
    failed: dict[str, str]


class _Piece(NamedTuple):
    """What VBench is asked about: a video, or a clip of it. key: what it shows and is asked, whatever its name."""

    key: str
    video: str
    item: Item


def score_folder(
    folder: Path,
    dimensions: Iterable[str] | None,
    out: Path,
    *,
    prompts: Path | None = None,
    protocol: str | None = None,
    device: str = "cpu",
    generated_with: str = "unknown",
    environment: Path | None = None,
    weights: Path | None = None,
) -> Scores:
    """Score the videos of ``folder``; leave a value a dimension in ``out``, DIMENSION.json, beside its records.

    dimensions: None takes all that run here and suit the videos. prompts: as `hiar.vbench.videos.read_videos` says.
    protocol: None goes by the videos' length. generated_with: ``short`` or ``extended`` prompts, which is noted.
    A dimension that breaks down is in ``failed``; the others go on. Raises UserError, before anything is scored, for
    what does not fit: dimensions, environment, weights, videos, prompts.
    """
    named = None if dimensions is None else known_dimensions(dimensions)
    if protocol not in (None, *PROTOCOLS):
        raise UserError(f"--protocol = {protocol}: is none of {', '.join(PROTOCOLS)}; choose one of them")
    where = find_environment(environment or default_folder())
    weights = weights or weights_folder()
    suite = read_suite(where.suite)
    videos = read_videos(folder, suite, prompts)
    standard = is_standard(videos, suite)
    protocol = protocol or protocol_of(videos)
    if named is None:
        findings = _runnable(
            where, weights, [name for name in DIMENSIONS if standard or not DIMENSIONS[name].described]
        )
    else:
        _check_suitable(named, videos, standard, suite)
        findings = examine(where, weights, named)
        require_runnable(findings)
    hashes = {video.path: sha256(video.path) for video in videos}
    scores = Scores({}, {})
    for finding in findings:
        name = finding.dimension
        chosen = _chosen(name, videos, suite) if standard else [(video, {}) for video in videos]
        if not chosen:
            tell(f"{name}: none of the videos is of its prompts; left out")
            continue
        facts = {
            "protocol": protocol,
            "prompts": "suite" if standard else "own",
            "generated_with": generated_with,
            "device": device,
            "weights": finding.weights,
            "versions": where.versions(),
        }
        try:
            value, each = _score(name, chosen, hashes, suite if standard else [], out, facts, where, weights)
        except RunFailed as error:
            tell(f"error: {error}")
            scores.failed[name] = str(error)
            continue
        expected = SAMPLES * len(wanted(suite, [name])) if standard else len(chosen)
        count = {"videos": len(chosen), "of": max(expected, len(chosen))}
        write_json(out / f"{name}.json", {"dimension": name, "value": value, **count, **facts, "by_video": each})
        scores.values[name] = value
        if count["videos"] < count["of"]:
            tell(
                f"{name}: {count['videos']} of the {count['of']} videos of VBench's suite: no figure for a leaderboard"
            )
    if not scores.failed:
        remove(out / CLIPS)
    return scores


def _runnable(environment: Environment, weights: Path, names: Sequence[str]) -> list[Finding]:
    findings = examine(environment, weights, names)
    for finding in findings:
        if finding.problems:
            tell(f"{finding.dimension}: cannot run here and is left out: {finding.problems[0]}")
    return [finding for finding in findings if not finding.problems]


def _check_suitable(names: Iterable[str], videos: Sequence[Video], standard: bool, suite: Sequence[Entry]) -> None:
    for name in names:
        if DIMENSIONS[name].described and not standard:
            known = {entry.prompt for entry in suite}
            other = next(video for video in videos if video.prompt not in known)
            raise UserError(
                f"{name}: compares with what VBench's suite says beside its prompts, and '{other.prompt[:60]}' of "
                f"{other.path.name} is none of them; leave the dimension out, or sample `hiar vbench prompts`"
            )
        if standard and not _chosen(name, videos, suite):
            raise UserError(f"{name}: none of the videos is of its prompts; `hiar vbench prompts {name}` lists them")


def _chosen(name: str, videos: Sequence[Video], suite: Iterable[Entry]) -> list[tuple[Video, dict[str, Any]]]:
    """The videos of a dimension's prompts in the suite's order, with what the suite says beside each prompt."""
    samples = defaultdict(list)
    for video in sorted(videos, key=lambda video: video.sample):
        if video.sample < SAMPLES:
            samples[video.prompt].append(video)
    return [(video, entry.auxiliary) for entry in suite if name in entry.dimensions for video in samples[entry.prompt]]


def _score(
    name: str,
    chosen: Sequence[tuple[Video, dict[str, Any]]],
    hashes: Mapping[Path, str],
    suite: Sequence[Entry],
    out: Path,
    facts: Mapping[str, Any],
    environment: Environment,
    weights: Path,
) -> tuple[float, dict[str, float | None]]:
    """The value of one dimension, and of each of its videos by name."""
    long = facts["protocol"] == "vbench-long"
    decides = {field: facts[field] for field in ("protocol", "device", "weights", "versions")}
    with open_records(out, name, decides) as records:
        pieces = [
            piece
            for video, auxiliary in chosen
            for piece in (
                _clips(video, auxiliary, hashes[video.path], suite, out)
                if long
                else [
                    _Piece(_key(hashes[video.path], video), video.path.name, Item(video.path, video.prompt, auxiliary))
                ]
            )
        ]
        _ask_for_missing(name, pieces, records, out, facts["device"], environment, weights)
        known: dict[str, list[dict[str, Any]]] = {video.path.name: [] for video, _ in chosen}
        for piece in pieces:
            if (fields := records.known[piece.key]) is not None:
                known[piece.video].append(fields)
    if not any(known.values()):
        raise RunFailed(f"{name}: VBench gives none of the {len(chosen)} videos a value; see {records_path(out, name)}")
    if long:
        value, by_video = long_values(name, known)
    else:
        value = dimension_value(name, [one for fields in known.values() for one in fields])
        by_video = {video: fields[0]["video_results"] for video, fields in known.items() if fields}
    return value, {video: by_video.get(video) for video in known}


def _key(content: str, video: Video) -> str:
    return f"{content} {video.prompt}"


def _clips(video: Video, auxiliary: dict[str, Any], content: str, suite: Sequence[Entry], out: Path) -> list[_Piece]:
    seconds = clip_seconds(name for entry in suite if entry.prompt == video.prompt for name in entry.dimensions)
    parts = clip_frames(video.frames, video.fps, seconds)
    paths = cut(video.path, parts, int(video.fps), out / CLIPS / f"{content[:32]}-{seconds}")
    return [
        _Piece(f"{_key(content, video)} {seconds} s, {number}", video.path.name, Item(path, video.prompt, auxiliary))
        for number, path in enumerate(paths)
    ]


def _ask_for_missing(
    name: str,
    pieces: Sequence[_Piece],
    records: Records,
    out: Path,
    device: str,
    environment: Environment,
    weights: Path,
) -> None:
    missing = list({piece.key: piece for piece in pieces if piece.key not in records.known}.values())
    if not missing:
        return
    done = len(pieces) - len(missing)
    log = out / "logs" / f"{name}.log"
    with Progress(name, len(pieces), start=done, unit="videos") as progress:
        for number, fields in ask(environment, weights, name, [piece.item for piece in missing], device, log):
            if number is None:
                progress.advance()
                continue
            piece = missing[number]
            if fields is not None and not math.isfinite(fields["video_results"]):
                raise RunFailed(f"{name}: VBench's value of {piece.video} is {fields['video_results']}; see {log}")
            records.add(piece.key, piece.video, fields)
