"""Results of profiles for each video, stored one by one, so that none is computed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import json_line, write_text
from hiar.io.kept import keeping, read_kept
from hiar.io.progress import Progress, tell
from hiar.io.reading import PART, Head, read_parts
from hiar.profiles.profile import Profile
from hiar.stages.looking import look_through

PIXELS = 2**22  # decoded at a time: ten frames of 832x480
FIELDS = ("video", "profile", "record", "sha256", "caption", "frames", "width", "height", "rate", "metrics")

Key = tuple[str, str, str, str | None]  # profile, hash of its record, hash of the video, caption
Result = dict[str, Any]  # of one video by one profile, with the FIELDS


@dataclass(frozen=True)
class Video:
    """A video to score, and its caption for profiles that need it."""

    path: Path
    head: Head
    caption: str | None
    sha256: str

    def key(self, profile: Profile) -> Key:
        """What a result depends on."""
        caption = self.caption if profile.captioned else None
        return profile.name, profile.record_hash, self.sha256, caption


def score_videos(
    source: Path, videos: Sequence[Video], profiles: Sequence[Profile], values: Path | None
) -> tuple[dict[str, list[Result]], dict[Path, str]]:
    """Results by profile, in the videos' order, and error messages by video; no results if any video fails.

    Results that the file ``values`` holds are reused; all others are added to it as soon as they are computed.
    ``source``: named in the lines on the screen.
    Raises UserError if ``values`` holds anything else or cannot be written.
    """
    results = {_key_of(result): result for result in read_kept(values, FIELDS)} if values else {}
    failed = _score_left(source, videos, profiles, results, values)
    if failed:
        return {}, failed
    return {
        profile.name: [results[video.key(profile)] | {"video": video.path.name} for video in videos]
        for profile in profiles
    }, {}


def keep_only(values: Path, found: Mapping[str, list[Result]]) -> None:
    """Reduce ``values`` to the results ``found``, in order, and those of other profiles; report what is removed."""
    earlier = read_kept(values, FIELDS)
    lines = [result for results in found.values() for result in results]
    keys = {_key_of(result) for result in lines}
    gone = [result for result in earlier if result["profile"] in found and _key_of(result) not in keys]
    if gone:
        tell(
            f"{values}: {len(gone)} results dropped, of videos or profiles that have changed ({gone[0]['video']} first)"
        )
    lines += [result for result in earlier if result["profile"] not in found]
    write_text(values, "".join(json_line(result) for result in lines))


def _score_left(
    source: Path,
    videos: Sequence[Video],
    profiles: Sequence[Profile],
    results: dict[Key, Result],
    values: Path | None,
) -> dict[Path, str]:
    """Add missing results to ``results`` and, as soon as computed, to ``values``; returns error messages by video."""
    left = [video for video in videos if any(video.key(profile) not in results for profile in profiles)]
    if len(left) < len(videos):
        tell(f"score {source}: {len(videos) - len(left)} of {len(videos)} videos are scored already")
    if not left:
        return {}
    lengths = [video.head.frames for video in left]
    total = sum(length or 0 for length in lengths) if all(lengths) else None
    failed: dict[Path, str] = {}
    with (
        keeping(values) if values else nullcontext(lambda result: None) as keep,
        Progress(f"score {source}", total, unit="frames") as progress,
    ):
        for video in left:
            wanted = [profile for profile in profiles if video.key(profile) not in results]
            try:
                scored = _score(video, wanted, progress)
            except UserError as error:
                failed[video.path] = str(error)
                tell(f"score {source}: left out: {error}")
                continue
            for result in scored:
                results[_key_of(result)] = result
                keep(result)
    return failed


def _score(video: Video, profiles: Sequence[Profile], progress: Progress) -> list[Result]:
    """One result per profile for a video, from one pass over it. Raises UserError if it cannot be scored."""
    head = video.head
    for profile in profiles:
        if min(head.width, head.height) < profile.least_side:
            least = f"{profile.name} needs {profile.least_side} a side"
            raise UserError(f"{video.path}: is {head.width}x{head.height} pixels, {least}; leave it out")
    frames = min(PART, max(1, PIXELS // (head.width * head.height)))
    parts = (part[None] for part in read_parts(video.path, frames))
    findings, length = look_through(
        parts, [profile.observer for profile in profiles], [video.caption or ""], progress.advance
    )
    facts = {"frames": length, "width": head.width, "height": head.height, "rate": head.rate}
    results = []
    for profile, found in zip(profiles, findings, strict=True):
        if length < profile.observer.least_frames:
            least = f"{profile.name} needs {profile.observer.least_frames}"
            raise UserError(f"{video.path}: has {length} frames, {least}; make it longer or leave it out")
        names = dict(zip(("profile", "record", "sha256", "caption"), video.key(profile), strict=True))
        metrics = {name: _number(float(value)) for name, value in profile.observer.measure(found).items()}
        results.append({"video": video.path.name} | names | facts | {"metrics": metrics})
    return results


def _number(value: float) -> float | None:
    """The value, None for NaN: undefined for this video."""
    return None if value != value else value


def _key_of(result: Mapping[str, Any]) -> Key:
    return result["profile"], result["record"], result["sha256"], result["caption"]
