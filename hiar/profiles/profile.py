"""Profiles: an observer of videos with a name and all that a reader of its results must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from hiar.judges.interface import Observer

READING = ("av", "numpy", "torch")  # packages on which every result depends: they decode and compute


@dataclass(frozen=True)
class Profile:
    """A way of scoring; results of two that differ in name or record are never averaged."""

    name: str
    observer: Observer
    record: Mapping[str, Any]  # what produces its results: a video is scored anew when this changes
    captioned: bool = False  # whether it needs the videos' captions
    least_side: int = 1  # smallest side of a video, in pixels

    @cached_property
    def record_hash(self) -> str:
        """SHA-256 of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()


def made_by(name: str, number: int, *packages: str) -> dict[str, Any]:
    """The part that all records have. ``number``: version of the profile's definition, raised when that changes."""
    return {
        "profile": name,
        "version": number,
        "models": [],
        "packages": {package: version(package) for package in sorted({*READING, *packages})},
    }
