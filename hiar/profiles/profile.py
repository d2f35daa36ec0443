"""What a profile is: an observer of videos under a name, with all that a reader of its results must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from hiar.errors import UserError, suggest
from hiar.judges.interface import Judge, Observer
from hiar.vbench.dimensions import PROTOCOLS

READING = ("av", "numpy", "torch")  # packages that decide every result: they decode and compute


@dataclass(frozen=True)
class Profile:
    """A way of scoring; results of two that differ in name or record are never averaged."""

    name: str
    observer: Observer
    record: Mapping[str, Any]  # what produces its results: a video is scored anew when this changes
    captioned: bool = False  # whether it asks for what the videos should show
    least_side: int = 1  # pixels that a video must have

    @cached_property
    def record_hash(self) -> str:
        """SHA-256 of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()


def open_profiles(
    names: Sequence[str], judge: Judge | None, protocol: Mapping[str, Any] | None = None
) -> list[Profile]:
    """The profiles of these names; none: the world's judge. ``protocol``: what the judge goes by, for its record.

    Raises UserError for names that are unknown, given twice, or of a profile that cannot run here.
    """

    def judging() -> Profile:
        assert judge is not None
        return Profile(judge.name, judge, {"protocol": protocol} | made_by(judge.name, 1), captioned=True)

    known = ({judge.name: judging} if judge else {}) | _worldless()
    for place, name in enumerate(names):
        if name not in known:
            world = "" if judge else " where no params.yaml says of which world the videos are"
            raise UserError(f"--profile = {name}: unknown here{world}; {suggest(name, [*known, *PROTOCOLS])}")
        if name in names[:place]:
            raise UserError(f"--profile = {name}: is given twice; give each once")
    return [known[name]() for name in names] if names else [judging()]


def needs_world(names: Sequence[str]) -> bool:
    """Whether one of these profiles may be a world's judge, as where none is named."""
    return not names or not set(names) <= _worldless().keys()


def _worldless() -> dict[str, Callable[[], Profile]]:
    """The profiles of any videos whatever."""
    from hiar.profiles import drift, lite

    return {lite.NAME: lite.open_profile, drift.NAME: drift.open_profile}


def made_by(name: str, number: int, *packages: str) -> dict[str, Any]:
    """The part that all records have. ``number``: of the profile's definition, raised when that changes."""
    return {
        "profile": name,
        "version": number,
        "models": [],
        "packages": {package: version(package) for package in sorted({*READING, *packages})},
    }
