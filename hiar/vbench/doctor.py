"""What runs here: each dimension with what it lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from hiar.errors import UserError
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.environment import Environment, default_folder, find_environment
from hiar.vbench.weights import Held, inspect, weights_folder

# How packages are had that no registry has.
_BUILT = {
    "detectron2": "is on no package registry, build it: pip install git+https://github.com/facebookresearch/"
    "detectron2 in that environment"
}


class Finding(NamedTuple):
    """A dimension; it is runnable when there are no problems. weights: the files it loads, with their hashes."""

    dimension: str
    problems: tuple[str, ...]
    weights: dict[str, str]


def examine(environment: Environment, folder: Path, dimensions: Iterable[str] = DIMENSIONS) -> list[Finding]:
    """Look for all that the dimensions need in the environment and the folder of weights; nothing is loaded.

    Every file is read once, for its hash.
    """
    named = list(dimensions)
    held = {file: inspect(folder, file) for file in dict.fromkeys(_files(named))}
    return [_finding(environment, name, [held[file] for file in DIMENSIONS[name].files]) for name in named]


def check_vbench(dimensions: Collection[str]) -> None:
    """Raise UserError where one cannot run here: before hours are spent on what it is to score."""
    if dimensions:
        require_runnable(examine(find_environment(default_folder()), weights_folder(), dimensions))


def require_runnable(findings: Collection[Finding]) -> None:
    """Raise UserError naming the first thing that is missing of the first dimension that cannot run."""
    for finding in findings:
        if finding.problems:
            more = f" (and {len(finding.problems) - 1} more: `hiar vbench doctor`)" * (len(finding.problems) > 1)
            raise UserError(f"{finding.dimension}: {finding.problems[0]}{more}")


def _files(dimensions: Iterable[str]) -> Iterable[str]:
    return (file for name in dimensions for file in DIMENSIONS[name].files)


def _finding(environment: Environment, name: str, held: Iterable[Held]) -> Finding:
    held = list(held)
    packages = [
        f"package {package} is not in {environment.packages}; it {_BUILT[package]}"
        for package in DIMENSIONS[name].packages
        if not environment.has(package)
    ]
    problems = (*packages, *(one.problem for one in held if one.problem))
    return Finding(name, problems, {one.name: one.sha256 for one in held if one.sha256})
