"""Where an experiment lives: the project's folder for the default one, ``runs/NAME/`` for every other.

A workspace holds its own params.yaml and everything made from it. The definition of the stages and the code they
depend on are links to the project's, and DVC's cache is the project's too, so that the same stage on the same inputs
is run once for all experiments.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hiar.config import Params
from hiar.errors import UserError, suggest
from hiar.io.files import write_text, writing
from hiar.parameters import merge, parse_params, read_yaml

PARAMS = "params.yaml"
LINKS = ("hiar", "dvc.yaml", ".dvcignore")
INPUTS = ("models", "experiments")  # of the project, which params.yaml may name files in
# A DVC repository of its own: its lock file and state are the experiment's, its cache the project's.
DVC_CONFIG = """\
[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    dir = ../../../.dvc/cache
"""


def experiment_tree(root: Path, name: str | None) -> dict[str, Any]:
    """The parameters of an experiment as YAML data: params.yaml, with experiments/NAME.yaml merged over it.

    A name may be of several files, ONE+OTHER: each is merged over those before it.

    Raises UserError when there is no such experiment or a file is not valid YAML.
    """
    tree = read_yaml(root / PARAMS)
    for part in name.split("+") if name is not None else []:
        tree = merge(tree, read_yaml(override_of(root, part)))
    return tree


def experiment_params(root: Path, name: str | None) -> Params:
    """The validated parameters of an experiment; an error names the file that holds it."""
    defaults = root / PARAMS
    if name is None:
        return parse_params(read_yaml(defaults), defaults)
    parse_params(read_yaml(defaults), defaults)
    return parse_params(experiment_tree(root, name), override_of(root, name.rpartition("+")[2]))


def override_of(root: Path, name: str) -> Path:
    """experiments/NAME.yaml. Raises UserError with the closest known name when there is none."""
    path = root / "experiments" / f"{name}.yaml"
    known = sorted(file.stem for file in (root / "experiments").glob("*.yaml"))
    if name in known:
        return path
    raise UserError(f"experiment '{name}': there is no {path}; {suggest(name, known)}")


def open_workspace(root: Path, name: str | None) -> Path:
    """The folder of an experiment, made and brought up to date where need be; params.yaml is validated first.

    Raises UserError for parameters that are not valid, and where the folder cannot be written.
    """
    experiment_params(root, name)
    if name is None:
        return root
    workspace = root / "runs" / name
    with writing(workspace):
        (workspace / ".dvc").mkdir(parents=True, exist_ok=True)
        for link in (*LINKS, *(name for name in INPUTS if (root / name).exists())):
            _link(workspace / link, Path("..", "..", link))
    header = f"# Made by `hiar run {name}` from params.yaml and experiments/{name}.yaml: change those.\n"
    for path, text in {
        workspace / PARAMS: header + yaml.safe_dump(experiment_tree(root, name), sort_keys=False),
        workspace / ".dvc" / "config": DVC_CONFIG,
    }.items():
        if not path.exists() or path.read_bytes() != text.encode():
            write_text(path, text)
    return workspace


@contextmanager
def sole_use(root: Path, name: str | None) -> Iterator[int | None]:
    """Keep every other `hiar run` out of an experiment's workspace, by a lock that the kernel releases.

    Yields the number of the open file that holds it, for a process that is to hold it too; None where there is no
    project. Raises UserError when another has it.
    """
    workspace = root if name is None else root / "runs" / name
    path = workspace / ".dvc" / "tmp" / "hiar-run.lock"
    if not (root / ".dvc").is_dir():  # DVC will say so
        yield None
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workspace.resolve().name if name is None else workspace}: another `hiar run` is at work here; "
                "wait until it ends, or stop it"
            ) from None
        yield file.fileno()


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    path.unlink(missing_ok=True)
    path.symlink_to(target)
