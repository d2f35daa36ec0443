"""Names of videos in a folder: which is the first, the second, and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from hiar.errors import UserError
from hiar.io.progress import tell

OTHERS = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mpg", ".webm"}  # other formats of videos


def video_name(number: int, count: int) -> str:
    """The name of video ``number`` of ``count``, counted from 0; padded, so that names sort by number for any count."""
    return f"{number:0{max(4, len(str(count - 1)))}d}.mp4"


def mp4_files(folder: Path) -> list[Path]:
    """The mp4 files of a folder, in any order, without folders and hidden files (macOS writes some)."""
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".mp4" and not path.is_dir()]
    return [path for path in files if not path.name.startswith(".")]


def tell_of_others(folder: Path) -> None:
    """Print which videos of a folder are not mp4 files: results that leave them out would not show it."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in OTHERS and path.name[0] != ".")
    if others:
        named = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        tell(f"{folder}: videos that are not mp4 are left out ({len(others)}: {named}); convert them")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Files sorted by name, with numbers in names sorted by value: 2.mp4 comes before 10.mp4.

    Raises UserError for two names whose order is ambiguous: they differ only in leading zeros or capitals, or their
    order depends on whether capitals count.
    """
    ordered = sorted(paths, key=lambda path: (_key(path.stem.casefold()), path.name))
    for one, other in pairwise(ordered):
        first, second = _key(one.stem), _key(other.stem)
        if first >= second or _key(one.stem.casefold()) == _key(other.stem.casefold()):
            raise UserError(
                f"{other}: its order beside {one.name} is ambiguous; number videos with equally many digits, such as "
                f"{video_name(0, 1)}, in the order of their captions"
            )
    return ordered


def by_number(ordered: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first two neighbours whose order by number differs from their order as text, if any."""
    return next(((one, other) for one, other in pairwise(ordered) if one.name > other.name), None)


def _key(stem: str) -> list[str | int]:
    """The stem as alternating text and numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", stem))]
