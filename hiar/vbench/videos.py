"""The videos of a folder, with their prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import av

from hiar.errors import UserError, suggest
from hiar.io.names import in_order, mp4_files
from hiar.io.progress import tell
from hiar.io.text import one_line, split_lines
from hiar.vbench.dimensions import LONG, LONG_SECONDS, protocol_for
from hiar.vbench.suite import Entry, file_stem, parse_name

CAPTIONS = "captions.txt"  # of a folder that `hiar sample` has filled


class Video(NamedTuple):
    """sample: which of its prompt's videos it is, counted from 0. fps: frames per second, as in the file."""

    path: Path
    prompt: str
    sample: int
    frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.fps


def read_videos(folder: Path, suite: Iterable[Entry], prompts: Path | None = None) -> list[Video]:
    """The mp4 files of a folder, each with its prompt, in order of their names.

    prompts: a text file, one prompt per line in the videos' order, or VBench's JSON object of prompts by file name; by
    default the folder's captions.txt, else VBench's file names. Raises UserError when they do not match, or for a file
    that is no video.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name one with videos")
    paths = sorted(mp4_files(folder))
    if not paths:
        raise UserError(f"{folder}: holds no video; VBench scores *.mp4")
    for path in paths:
        if path.suffix != ".mp4":
            raise UserError(f"{path}: VBench reads only names that end in .mp4, in lower case; rename it")
    source = prompts or (folder / CAPTIONS if (folder / CAPTIONS).is_file() else None)
    if source is None:
        named = _by_name(paths, suite)
    else:
        texts = _by_file(paths, source)
        paths = list(texts)
        counts: Counter[str] = Counter()
        named = {}
        for path in paths:
            named[path] = (texts[path], counts[texts[path]])
            counts[texts[path]] += 1
    return [Video(path, *named[path], *_length(path)) for path in paths]


def generated_with(folder: Path) -> str:
    """``short`` or ``extended`` prompts, as recorded by `hiar sample`; ``unknown`` for videos from elsewhere."""
    try:
        noted = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["generated_with"]
    except (OSError, ValueError, LookupError, TypeError):
        return "unknown"
    return noted if noted in ("short", "extended") else "unknown"


def is_standard(videos: Sequence[Video], suite: Iterable[Entry]) -> bool:
    """Whether all are of the suite's prompts, so that each dimension scores only those of its own prompts.

    Where only some are, a message says so.
    """
    known = {entry.prompt for entry in suite}
    others = [video for video in videos if video.prompt not in known]
    if others and len(others) < len(videos):
        tell(
            f"{others[0].path}: '{others[0].prompt[:60]}' is not one of the suite's prompts ({len(others)} of "
            f"{len(videos)} are not): each dimension scores all videos"
        )
    return not others


def protocol_of(videos: Sequence[Video]) -> str:
    """``vbench`` where all videos are shorter than five seconds, ``vbench-long`` where none is.

    Raises UserError for a folder with both.
    """
    found = {protocol_for(video.seconds): video for video in videos}
    if len(found) > 1:
        one, other = found[LONG], found["vbench"]
        raise UserError(
            f"{one.path}: is {one.seconds:.1f} s long, {other.path.name} is {other.seconds:.1f}: videos of "
            f"{LONG_SECONDS:g} s and more have their own protocol; choose --protocol vbench or vbench-long"
        )
    return next(iter(found))


def _length(path: Path) -> tuple[int, float]:
    """Number of frames and frame rate. Raises UserError for a file that is no video, or does not tell them."""
    from hiar.io.reading import read_head  # loads torch

    read_head(path)
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    if not rate or not frames:
        raise UserError(f"{path}: states no frame rate or length; make it again")
    return frames, float(rate)


def _by_name(paths: Iterable[Path], suite: Iterable[Entry]) -> dict[Path, tuple[str, int]]:
    prompts = {file_stem(entry.prompt): entry.prompt for entry in suite}
    named = {}
    for path in paths:
        found = parse_name(path.stem, prompts)
        if found is None:
            close = suggest(path.stem.rpartition("-")[0] or path.stem, prompts)
            hint = f" ({close})" if close.startswith("did") else ""
            raise UserError(
                f"{path}: is not named after a prompt of VBench's suite, as in 'PROMPT-0.mp4'{hint}; rename it, or say "
                "what the videos show: --prompts FILE"
            )
        named[path] = found
    return named


def _by_file(paths: Sequence[Path], source: Path) -> dict[Path, str]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{source}: cannot be read ({error}); write a prompt a line, in the order of the videos"
        ) from None
    if source.suffix == ".json":
        return _by_table(paths, source, text)
    paths = in_order(paths)
    prompts = [one_line(line) for line in split_lines(text) if line.strip()]
    if len(prompts) != len(paths):
        raise UserError(
            f"{source}: holds {len(prompts)} prompts for the {len(paths)} videos of {paths[0].parent}; write one a "
            "line, in the order of the videos' names"
        )
    return dict(zip(paths, prompts, strict=True))


def _by_table(paths: Iterable[Path], source: Path, text: str) -> dict[Path, str]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: is not JSON ({error}); write an object of prompts by file name") from None
    if not isinstance(table, Mapping) or not all(isinstance(prompt, str) for prompt in table.values()):
        raise UserError(f'{source}: is not an object of prompts by file name; write {{"0000.mp4": "a prompt"}}')
    for path in paths:
        if not table.get(path.name):
            raise UserError(f"{source}: has no prompt for {path.name}; add it, or remove the video")
    return {path: one_line(table[path.name]) for path in paths}
