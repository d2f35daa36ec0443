"""What VBench scores: the videos of a dimension, their clips, or the clips' first frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiar.io.progress import Progress
from hiar.vbench.asking import Item
from hiar.vbench.clips import FIRST_FRAMES, clip_frames, clip_rate, clip_seconds, cut
from hiar.vbench.dimensions import SAMPLES
from hiar.vbench.suite import Entry
from hiar.vbench.videos import Video

Chosen = tuple[Video, dict[str, Any]]  # a video, and the suite's ``auxiliary_info`` on its prompt


class Piece(NamedTuple):
    """What VBench scores: a video, or a clip of it. key: its content and its prompt, whatever the file's name."""

    key: str
    video: str
    item: Item


def chosen_videos(name: str, videos: Sequence[Video], suite: Iterable[Entry], most: int = SAMPLES) -> list[Chosen]:
    """The videos of a dimension's prompts in the suite's order, with the suite's ``auxiliary_info``.

    Of each prompt, samples 0 to ``most`` - 1.
    """
    samples = defaultdict(list)
    for video in videos:  # ordered by name, which keeps samples of one digit in order
        if video.sample < most:
            samples[video.prompt].append(video)
    return [(video, entry.auxiliary) for entry in suite if name in entry.dimensions for video in samples[entry.prompt]]


def whole_videos(chosen: Sequence[Chosen], hashes: Mapping[Path, str]) -> list[Piece]:
    """The videos as they are. hashes: of their contents."""
    return [
        Piece(f"{hashes[video.path]} {video.prompt}", video.path.name, Item(video.path, video.prompt, auxiliary))
        for video, auxiliary in chosen
    ]


def clips_of(chosen: Sequence[Chosen], hashes: Mapping[Path, str], suite: Iterable[Entry], folder: Path) -> list[Piece]:
    """The clips of each video, cut where they are missing. suite: empty where the prompts are not the suite's."""
    looked_at: defaultdict[str, set[str]] = defaultdict(set)
    for entry in suite:
        looked_at[entry.prompt].update(entry.dimensions)
    pieces = []
    with Progress("clips", len(chosen), unit="videos") as progress:
        for video, auxiliary in chosen:
            seconds = clip_seconds(looked_at[video.prompt])
            parts, content = clip_frames(video.frames, video.fps, seconds), hashes[video.path]
            paths = cut(video.path, parts, clip_rate(video.fps), folder / f"{content[:32]}-{seconds}s")
            pieces += [
                Piece(
                    f"{content} {video.prompt} {seconds} s, {number}",
                    video.path.name,
                    Item(path, video.prompt, auxiliary),
                )
                for number, path in enumerate(paths)
            ]
            progress.advance()
    return pieces


def by_name(chosen: Iterable[Chosen]) -> list[Chosen]:
    """The videos of each prompt in the order of VBench's names, in which 10 comes before 2."""
    return sorted(chosen, key=lambda one: f"{one[0].sample}.mp4")


def first_frames(pieces: Iterable[Piece]) -> list[Piece]:
    """For each video of several clips, the piece of their first frames."""
    clips: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        clips[piece.video].append(piece)
    return [
        own[0]._replace(
            key=f"{own[0].key}, first frames",
            item=own[0].item._replace(path=own[0].item.path.with_name(FIRST_FRAMES)),
        )
        for own in clips.values()
        if len({piece.item.path for piece in own}) > 1
    ]
