"""Names of videos in a folder: which is the first, the second, and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from hiar.errors import UserError
from hiar.io.progress import tell

OTHERS = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mpg", ".webm"}  # that hold videos, too


def video_name(number: int, count: int) -> str:
    """The name of video ``number`` of ``count``, counted from 0: as text, names sort by number for any count."""
    return f"{number:0{max(4, len(str(count - 1)))}d}.mp4"


def mp4_files(folder: Path) -> list[Path]:
    """The mp4 files of a folder, in any order. Hidden files (of macOS, for one) and folders are none of them."""
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".mp4" and not path.is_dir()]
    return [path for path in files if not path.name.startswith(".")]


def tell_of_others(folder: Path) -> None:
    """Tell which videos of a folder are no mp4 files: figures that leave them out would not show it."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in OTHERS and path.name[0] != ".")
    if others:
        named = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        tell(f"{folder}: videos that are no mp4 are left out ({len(others)}: {named}); convert them")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Files by name, numbers in names by their value: 2.mp4 comes before 10.mp4.

    Raises UserError for two names whose order is anybody's guess: alike but for leading zeros or capitals, or sorted
    another way where capitals count.
    """
    ordered = sorted(paths, key=lambda path: (_key(path.stem.casefold()), path.name))
    for one, other in pairwise(ordered):
        first, second = _key(one.stem), _key(other.stem)
        if first >= second or _key(one.stem.casefold()) == _key(other.stem.casefold()):
            raise UserError(
                f"{other}: may come before or after {one.name}; give videos names of one width, such as "
                f"{video_name(0, 1)}, in the order of their captions"
            )
    return ordered


def by_number(ordered: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first two neighbours that numbers put in another order than text does, if any."""
    return next(((one, other) for one, other in pairwise(ordered) if one.name > other.name), None)


def _key(stem: str) -> list[str | int]:
    """Text and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", stem))]
