"""VBench's own environment: its packages cannot live beside ours (it pins numpy 1 and transformers 4.33)."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from hiar.errors import UserError

FOLDER = ".venv-vbench"  # where `make vbench` builds it
# Packages that a value depends on, so their versions are kept beside it.
_VERSIONS = {
    "vbench", "torch", "torchvision", "numpy", "pyiqa", "openai-clip", "timm", "transformers", "decord",
    "opencv-python-headless", "detectron2",
}  # fmt: skip


class Environment(NamedTuple):
    """python: its interpreter. packages: the folder where its packages are installed."""

    python: Path
    packages: Path

    @property
    def suite(self) -> Path:
        """The prompt suite, a file of the package."""
        return self.packages / "vbench" / "VBench_full_info.json"

    def has(self, package: str) -> bool:
        """Whether a package is installed."""
        return (self.packages / package).is_dir()

    def versions(self, packages: Collection[str] = _VERSIONS) -> dict[str, str]:
        """The versions of ``packages`` that are installed; by default, of those that VBench's values depend on."""
        found = {one.name.lower(): one.version for one in distributions(path=[str(self.packages)])}
        return {name: found[name] for name in sorted(found.keys() & set(packages))}


def default_folder() -> Path:
    """Where `make vbench` builds the environment, beside the code that runs; HIAR_VBENCH names another place.

    A worker that runs a clone's code finds it in its own project, beside the environment of its Python.
    """
    if folder := os.environ.get("HIAR_VBENCH"):
        return Path(folder)
    beside_code, beside_python = Path(__file__).resolve().parents[2] / FOLDER, Path(sys.prefix).with_name(FOLDER)
    return beside_python if beside_python.is_dir() and not beside_code.is_dir() else beside_code


def find_environment(folder: Path) -> Environment:
    """The environment in a folder. Raises UserError where there is none, or VBench is not in it."""
    python = folder / "bin" / "python"
    found = [Environment(python, path.parent) for path in folder.glob("lib/python3*/site-packages/vbench")]
    if not python.exists() or not found or not found[0].suite.is_file():
        raise UserError(f"{folder}: holds no environment of VBench; build it with `make vbench` (two minutes, 1.6 GB)")
    return found[0]
