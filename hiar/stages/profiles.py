"""Score any folder of videos by profiles: each video is read once, and finished results are reused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hiar.errors import UserError
from hiar.io.cpu import settle_cpu
from hiar.io.files import file_hash, json_text
from hiar.io.manifests import MANIFEST
from hiar.io.names import by_number, tell_of_others
from hiar.io.outputs import Output, is_stream, write_output
from hiar.io.progress import tell
from hiar.io.reading import Head, read_head
from hiar.metrics.summary import Summary, summarise
from hiar.parameters import load_params
from hiar.profiles.profile import Profile
from hiar.profiles.registry import needs_world, open_profiles
from hiar.stages.comparison import CAPTIONS, check_heads, find_videos, list_videos
from hiar.stages.profile_values import Video, keep_only, score_videos
from hiar.stages.score import Protocol, checked_captions, protocol_of
from hiar.stages.vbench_profile import score_by_vbench, split_profiles
from hiar.vbench.runner import check_folder
from hiar.worlds.interface import open_world

SAME_RATE = 0.01  # relative difference that equal rates may have: containers round times
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"  # of the code that runs


def score_folder(
    folder: Path, names: Sequence[str], out: Output, workspace: Path = Path(), dimensions: Sequence[str] = ()
) -> None:
    """Score a folder's mp4 videos, ordered by name with numbers by value, by profiles; none: by their world's judge.

    ``out`` receives, by profile, its record and the mean, standard error and count of every metric. If it is a file,
    NAME.videos.jsonl beside it gets each video's values as soon as they are computed, and a later run reuses them.

    VBench's protocols are profiles too, with ``dimensions`` or all that run here; their results by video are in
    NAME.vbench or NAME.vbench-long beside the file, one file per dimension.

    A world's judge needs one caption per line in captions.txt. World and block come from the folder's manifest if it
    has one, else from params.yaml of the ``workspace``, as the judge's thresholds always do; with a manifest but no
    such file, thresholds are the project's defaults. Profiles for any videos read none of these.

    Raises UserError, before any work, for what is missing, not alike, not what the manifest says, or does not fit the
    captions; videos that cannot be read or are too short are reported after all others are scored.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds mp4 videos and {CAPTIONS}")
    names, by_vbench = split_profiles(names, dimensions)
    kept = _kept_by(out)
    if by_vbench and kept is None:
        raise UserError(f"--profile = {by_vbench[0]}: keeps its values beside the file of figures; give --out a file")
    if by_vbench and names:
        check_folder(folder, dimensions)  # before hours are spent on the other profiles
    found = _score_by_us(folder, names, kept, workspace) if names or not by_vbench else {}
    for name in by_vbench:
        assert kept is not None
        found[name] = score_by_vbench(folder, name, dimensions, kept.with_name(f"{kept.name}.{name}"))
    write_output(out, json_text(found))


def _score_by_us(folder: Path, names: Sequence[str], kept: Path | None, workspace: Path) -> dict[str, Any]:
    """The summaries, by profile, of profiles that are not VBench's."""
    protocol = _world_of(folder, names, workspace / "params.yaml")
    judge, record = (protocol.judge(), protocol.record()) if protocol else (None, None)
    profiles = open_profiles(names, judge, record)
    captioned = protocol if any(profile.captioned for profile in profiles) else None
    captions = checked_captions(folder, captioned) if captioned else None
    paths = list_videos(folder) if captions is None else find_videos(folder, len(captions))
    if not paths:
        raise UserError(f"{folder}: holds no mp4 video; name a folder that does")
    tell_of_others(folder)
    heads, failed = _heads(folder, paths)
    if heads and captioned:
        world = open_world(captioned.world)
        check_heads(folder, heads, (world.height, world.width), captioned.judge().least_frames)
        if pair := by_number(paths):
            tell(f"score {folder}: captions go to videos by number: {pair[0].name} comes before {pair[1].name}")
    _check_alike(heads)
    values = kept and kept.with_name(f"{kept.name}.videos.jsonl")
    videos = [
        Video(path, heads[path], captions[number] if captions else None, file_hash(path))
        for number, path in enumerate(paths)
        if path in heads
    ]
    found, unscored = score_videos(folder, videos, profiles, values)
    failed |= unscored
    if failed:
        _refuse(folder, failed, len(paths), values)
    if captions is not None:
        _check_lengths(paths, next(iter(found.values())))
    if values:
        keep_only(values, found)
    return {profile.name: _summary(profile, found[profile.name]) for profile in profiles}


def _world_of(folder: Path, names: Sequence[str], params: Path) -> Protocol | None:
    """The protocol of the folder's world; None if no profile needs one, or no file says which world it is."""
    known = os.path.lexists(folder / MANIFEST)
    if not needs_world(names) or (names and not known and not os.path.lexists(params)):
        settle_cpu()
        return None
    if not known and not os.path.lexists(params):
        raise UserError(
            f"--profile: is missing, and neither {folder / MANIFEST} nor a params.yaml here names the videos' world; "
            "name one that suits any video, such as drift-lite"
        )
    if not os.path.lexists(params):
        tell(f"score {folder}: with the thresholds of {PARAMS}, as there is no params.yaml here")
        params = PARAMS
    read = load_params(params)
    settle_cpu(read.runtime.threads)
    return protocol_of(folder, read)


def _heads(folder: Path, paths: Sequence[Path]) -> tuple[dict[Path, Head], dict[Path, str]]:
    """The headers of videos, and the error messages of those without a readable one."""
    heads, failed = {}, {}
    for path in paths:
        try:
            heads[path] = read_head(path)
        except UserError as error:
            failed[path] = str(error)
            tell(f"score {folder}: left out: {error}")
    return heads, failed


def _check_alike(heads: Mapping[Path, Head]) -> None:
    """Raise UserError for videos of different sizes or frame rates: their figures must not be averaged."""
    for path, head in heads.items():
        name, first = next(iter(heads.items()))
        if head[:2] != first[:2]:
            sizes = f"{head.width}x{head.height} pixels, {name.name} {first.width}x{first.height}"
            raise UserError(f"{path}: is {sizes}; score each size in a folder of its own")
        if head.rate and first.rate and abs(head.rate - first.rate) > SAME_RATE * first.rate:
            rates = f"{head.rate:g} frames a second, {name.name} {first.rate:g}"
            raise UserError(f"{path}: has {rates}; score each rate in a folder of its own")


def _kept_by(out: Output) -> Path | None:
    """NAME of NAME.json: the path that those of values by video begin with; None if ``out`` is no file."""
    if isinstance(out, int) or is_stream(out):
        return None
    return out.with_name(out.name.removesuffix(".json"))


def _check_lengths(paths: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for videos of different lengths, as headers may not say."""
    first = results[0]["frames"]
    for path, result in zip(paths, results, strict=True):
        if result["frames"] != first:
            lengths = f"{result['frames']} frames, {paths[0].name} {first} frames"
            raise UserError(f"{path}: is {lengths}; use one length")


def _refuse(folder: Path, failed: Mapping[Path, str], count: int, values: Path | None) -> None:
    if len(failed) == 1:
        raise UserError(*failed.values())
    others = f"; the others are kept in {values}" if values and len(failed) < count else ""
    raise UserError(
        f"{folder}: {len(failed)} of {count} videos cannot be scored (see above); fix or remove them{others}"
    )


def _summary(profile: Profile, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a profile, what the videos are, and the summary of each metric that is defined."""
    lengths = sorted({result["frames"] for result in results})
    metrics: dict[str, Summary] = {}
    for name in results[0]["metrics"]:
        defined = [result["metrics"][name] for result in results if result["metrics"][name] is not None]
        if defined:
            metrics[name] = summarise(torch.tensor(defined, dtype=torch.float64))
    return {
        "record": profile.record,
        "videos": len(results),
        "frames": lengths[0] if len(lengths) == 1 else [lengths[0], lengths[-1]],
        **{name: results[0][name] for name in ("width", "height", "rate")},
        "metrics": metrics,
    }
