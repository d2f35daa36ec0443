"""What runs here: each dimension, VBench-Long's branches across clips, and the paper's Drift, with what each lacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from hiar import config
from hiar.errors import UserError, suggest
from hiar.vbench.across import BRANCHES, SUFFIX
from hiar.vbench.dimensions import DIMENSIONS, LONG, RAFT, STATIC_FILTER, protocol_for
from hiar.vbench.environment import Environment, default_folder, find_environment
from hiar.vbench.frames import DRIFT, FILES, PACKAGES
from hiar.vbench.weights import Held, inspect, weights_folder

# How to get packages that `make vbench` does not install. GRiT imports all three: detectron2, whose build needs our
# torch, and two that it does not bring along; lvis asks for another OpenCV than ours.
_BUILT = {
    "detectron2": "is not on a package registry; build it with pip install --no-build-isolation git+https://github.com/"
    "facebookresearch/detectron2 in that environment",
    "lvis": "GRiT imports it; pip install --no-deps lvis in that environment",
    "boto3": "GRiT imports it; pip install boto3 in that environment",
}
_MADE = "should be; remove the environment and rebuild it with `make vbench`"


class Needs(NamedTuple):
    """What a run requires. files: in the folder of weights. packages: in the environment, in addition to VBench."""

    files: tuple[str, ...]
    packages: tuple[str, ...]


NEEDS = (
    {name: Needs(one.files, one.packages) for name, one in DIMENSIONS.items()}
    | {name + SUFFIX: Needs(one.files, one.packages) for name, one in BRANCHES.items()}
    | {STATIC_FILTER: Needs(RAFT, ())}
    | {DRIFT: Needs(FILES, PACKAGES)}
)


class Finding(NamedTuple):
    """A dimension, which can run when there are no problems. weights: hashes of the files that it loads, by name."""

    dimension: str
    problems: tuple[str, ...]
    weights: dict[str, str]


def examine(environment: Environment, folder: Path, names: Iterable[str] = DIMENSIONS) -> list[Finding]:
    """Check the environment and the folder of weights for all that dimensions, or Drift, need; nothing is loaded.

    Every file is read once, for its hash.
    """
    named = list(names)
    held = {file: inspect(folder, file) for file in dict.fromkeys(_files(named))}
    return [_finding(environment, name, [held[file] for file in NEEDS[name].files]) for name in named]


def known_names(names: Iterable[str]) -> list[str]:
    """The names, each once, in the given order. Raises UserError for one that is not in `NEEDS`."""
    named = list(dict.fromkeys(names))
    for name in named:
        if name not in NEEDS:
            raise UserError(f"'{name}': is neither one of VBench's dimensions nor {DRIFT}; {suggest(name, NEEDS)}")
    return named


def check_scoring(score: config.Score, seconds: Callable[[], float]) -> None:
    """Raise UserError where a dimension, or Drift, cannot run here, before hours are spent on the videos to score.

    seconds: returns the length of these videos.
    """
    names: list[str] = [*score.vbench, *(name for name in score.profiles if name in NEEDS)]
    branched = [name + SUFFIX for name in score.vbench if name in BRANCHES]
    if branched and (score.vbench_protocol or protocol_for(seconds())) == LONG:
        names += branched
    if names:
        require_runnable(examine(find_environment(default_folder()), weights_folder(), names))


def require_runnable(findings: Collection[Finding]) -> None:
    """Raise UserError naming the first problem of the first dimension that cannot run."""
    for finding in findings:
        if finding.problems:
            more = f" (and {len(finding.problems) - 1} more: `hiar vbench doctor`)" * (len(finding.problems) > 1)
            part = "; or leave this part out, `hiar vbench score --within-clips`" * finding.dimension.endswith(SUFFIX)
            raise UserError(f"{finding.dimension}: {finding.problems[0]}{more}{part}")


def _without_operators(environment: Environment) -> list[str]:
    """The problem of a torchvision for GPUs beside a torch without: its operators, which GRiT calls, do not load."""
    found = environment.versions(("torch", "torchvision"))
    if not found.get("torch", "").endswith("+cpu") or found.get("torchvision", "+cpu").endswith("+cpu"):
        return []
    return [
        f"torchvision {found['torchvision']} in {environment.packages} is built for GPUs, torch {found['torch']} is "
        "not, and GRiT calls torchvision's operators; pip install both for the same device in that environment"
    ]


def _files(names: Iterable[str]) -> Iterable[str]:
    return (file for name in names for file in NEEDS[name].files)


def _finding(environment: Environment, name: str, held: Iterable[Held]) -> Finding:
    held = list(held)
    packages = [
        f"package {package} is not in {environment.packages}, and {_BUILT.get(package, _MADE)}"
        for package in NEEDS[name].packages
        if not environment.has(package)
    ]
    if "detectron2" in NEEDS[name].packages:
        packages += _without_operators(environment)
    problems = (*packages, *(one.problem for one in held if one.problem))
    return Finding(name, problems, {one.name: one.sha256 for one in held if one.sha256})
