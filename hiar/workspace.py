"""Where an experiment lives: the project's folder for the default one, ``runs/NAME/`` for every other.

A workspace holds its own params.yaml and everything made from it. Its dvc.yaml is a copy of the project's, the code a
link, and DVC's settings, cache and remotes are the project's, so that a stage with the same inputs runs once for all
experiments. Its small files can be committed (.gitignore).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import yaml

from hiar.config import Params
from hiar.errors import InUse, UserError, suggest
from hiar.io.files import file_hash, write_text, writing
from hiar.io.fingerprints import cache_folder, fingerprint
from hiar.io.locks import locked
from hiar.io.manifests import MANIFEST
from hiar.io.progress import tell
from hiar.parameters import merge, parse_params, read_yaml
from hiar.vbench.doctor import check_scoring

PARAMS = "params.yaml"
LINKS = ("hiar", ".dvcignore")
PIPELINE = "dvc.yaml"  # copied: DVC does not follow a link when it reads a commit
# Fields of an experiment's file: the file that it overrides, and files that override it, to run and compare with it.
OVER, BESIDE = "over", "beside"
INPUTS = ("models", "experiments")  # folders of the project that params.yaml may refer to
NO_GIT = """\
# Made by `hiar run`, since there is no git repository here; it goes when there is one.
[core]
    no_scm = true
"""


def experiment_tree(root: Path, name: str | None) -> dict[str, Any]:
    """The parameters of an experiment as YAML data: params.yaml, with experiments/NAME.yaml merged over it.

    A name may join several files, ONE+OTHER: each is merged over those before it. A file may itself name the one that
    it lies ``over``.

    Raises UserError when there is no such experiment or a file is not valid YAML.
    """
    tree = read_yaml(root / PARAMS)
    for part in name.split("+") if name is not None else []:
        tree = merge(tree, _overrides(root, part))
    return tree


def _overrides(root: Path, part: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The overrides of experiments/PART.yaml, merged over those of the file that it lies ``over``."""
    path = override_of(root, part)
    tree = {field: value for field, value in read_yaml(path).items() if field != BESIDE}
    under = tree.pop(OVER, None)
    if under is None:
        return tree
    if not isinstance(under, str) or under in (part, *above):
        remedy = "leads back here; leave it out" if under in (part, *above) else "should be the name of one file"
        raise UserError(f"{path}: {OVER} = {under!r}: {remedy}")
    return merge(_overrides(root, under, (*above, part)), tree)


def experiments_beside(root: Path, name: str | None) -> list[str]:
    """The experiments to run and compare with ``name``: each is NAME+OTHER, in the order of its files.

    If a file is followed in ``name`` by one that it lists, that is one of the compared experiments, and runs alone.
    Raises UserError for files that do not exist.
    """
    others: list[str] = []
    parts = name.split("+") if name is not None else []
    for place, part in enumerate(parts):
        path = override_of(root, part)
        listed = read_yaml(path).get(BESIDE, [])
        if not isinstance(listed, list) or not all(isinstance(other, str) for other in listed):
            raise UserError(f"{path}: {BESIDE} = {listed!r}: should be a list of names of files in this folder")
        for other in listed:
            override_of(root, other)
        if not {*listed} & {*parts[place + 1 :]}:
            others += [f"{name}+{other}" for other in listed]
    return others


def experiment_params(root: Path, name: str | None) -> Params:
    """The validated parameters of an experiment; errors name the file they are in."""
    defaults = root / PARAMS
    if name is None:
        return parse_params(read_yaml(defaults), defaults)
    parse_params(read_yaml(defaults), defaults)
    return parse_params(experiment_tree(root, name), override_of(root, name.rpartition("+")[2]))


def run_params(root: Path, name: str) -> Params:
    """The parameters with which `hiar run` would run an experiment now, with the hashes of the files they name."""
    experiment_params(root, name)
    tree = experiment_tree(root, name)
    _pin_files(tree, root / "runs" / name)
    return parse_params(tree, override_of(root, name.rpartition("+")[2]))


def override_of(root: Path, name: str) -> Path:
    """experiments/NAME.yaml. Raises UserError with the closest known name when there is none."""
    path = root / "experiments" / f"{name}.yaml"
    known = sorted(file.stem for file in (root / "experiments").glob("*.yaml"))
    if name in known:
        return path
    remedy = suggest(Path(name).stem, known) if known else "run from the project's folder"
    raise UserError(f"experiment '{name}': there is no {path}; {remedy}")


def open_workspace(root: Path, name: str | None) -> Path:
    """The folder of an experiment, created or updated if necessary; params.yaml is validated first.

    Raises UserError for invalid parameters, for scores that cannot be computed here, for weights that cannot be
    adopted, and for a folder that cannot be written.
    """
    params = experiment_params(root, name)
    check_scoring(params.score, partial(_seconds, params))
    with _settings(root):
        _do_without_git(root)
    if name is None:
        return root
    workspace = root / "runs" / name
    with locked(workspace / ".dvc" / "tmp", "hiar-open.lock"):  # stages that start at the same time would collide in it
        _bring_up_to_date(root, name, workspace)
    _check_adopted(params, workspace)
    return workspace


def _bring_up_to_date(root: Path, name: str, workspace: Path) -> None:
    with writing(workspace):
        for link in (*LINKS, *(name for name in INPUTS if (root / name).exists())):
            _link(workspace / link, Path("..", "..", link))
    tree = experiment_tree(root, name)
    _pin_files(tree, workspace)
    header = f"# Made by `hiar run {name}` from params.yaml and experiments/{name}.yaml: change those.\n"
    for path, text in {
        workspace / PARAMS: header + yaml.safe_dump(tree, sort_keys=False),
        workspace / PIPELINE: (root / PIPELINE).read_text(encoding="utf-8"),
    }.items():
        if path.is_symlink() or not path.exists() or path.read_bytes() != text.encode():
            write_text(path, text)
    with _settings(root):
        _share_settings(root, workspace)


def _seconds(params: Params) -> float:
    """Length in seconds of the videos that an experiment compares."""
    from hiar.worlds.interface import open_world  # loads torch

    return open_world(params.world).seconds(params.sample.frames)


def _check_adopted(params: Params, workspace: Path) -> None:
    """Raise UserError for foreign weights that are here but cannot be adopted: the stage may be days away."""
    for source, weights in params.init.sources.values():
        if (workspace / source).exists():
            from hiar.worlds.interface import open_world  # loads torch

            open_world(params.world).check_foreign(workspace / source, weights)


def _pin_files(tree: dict[str, Any], workspace: Path) -> None:
    """Fill in missing hashes of the files that parameters name: DVC compares parameters, not these files.

    A missing file is reported now and left to the stage that reads it, perhaps days later and on another machine.
    """

    def pin(settings: dict[str, Any], field: str, content: Callable[[Path], str], part: str = "") -> None:
        name, said = settings.get(field), f"{field}_sha256"
        if name is None or settings.get(said) is not None:
            return
        if (path := workspace / name / part).exists():
            settings[said] = content(path)
        else:
            tell(f"{path}: is missing, and the stage that reads it will need it ({field} in the parameters)")

    pin(tree["world"], "prompts", file_hash)
    pin(tree["sample"], "prompts", file_hash)
    content = partial(fingerprint, cache=cache_folder())
    for settings in (tree["init"], tree["init"].get("teacher", {})):
        pin(settings, "source", content)
    pin(tree["distill"], "real_score", content, "transformer")  # as TRANSFORMER of `hiar.worlds`, which imports torch
    pin(tree["pairs"], "source", content, MANIFEST)


@contextmanager
def _settings(root: Path) -> Iterator[None]:
    """Turn DVC's error about the project's settings into a UserError."""
    from dvc.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise UserError(f"{root / '.dvc' / 'config'}: {' '.join(str(error).split())}; fix it") from None


def _share_settings(root: Path, workspace: Path) -> None:
    """Give the workspace, its own DVC repository, the project's DVC settings (repo and local) and its cache."""
    from dvc.config import Config, ConfigError
    from dvc.config_schema import RelPath

    def of(folder: Path) -> Config:
        return Config(os.fspath(folder / ".dvc"), validate=False)

    project = of(root)
    try:
        own = of(workspace)
    except ConfigError:  # cut short by a kill
        for name in ("config", "config.local"):
            (workspace / ".dvc" / name).unlink(missing_ok=True)
        own = of(workspace)
    for level in ("repo", "local"):
        settings = project.load_one(level)  # its paths are absolute, and written relative to the workspace
        if level == "repo":
            settings["cache"].setdefault("dir", RelPath((root / ".dvc" / "cache").absolute()))
        if own.load_one(level) != settings:
            with own.edit(level, validate=False) as mine:
                mine.clear()
                mine.update(settings)


def _do_without_git(workspace: Path) -> None:
    """Set DVC's no_scm where there is no git repository, and remove it when there is one."""
    from dvc.config import Config
    from dvc.scm import SCM, SCMError

    folder = workspace / ".dvc"
    local = folder / "config.local"
    if not folder.is_dir():
        return
    ours = local.exists() and local.read_text(encoding="utf-8") == NO_GIT
    config = Config(os.fspath(folder))
    if config["core"].get("no_scm") and not ours:
        return
    try:
        SCM(os.fspath(workspace))
    except SCMError:
        if local.exists() and not ours:  # it holds something else of the user's
            with config.edit("local") as own:
                own.setdefault("core", {})["no_scm"] = True
        elif not ours:
            write_text(local, NO_GIT)
    else:
        if ours:
            local.unlink()


@contextmanager
def sole_use(root: Path, name: str | None) -> Iterator[int | None]:
    """Keep every other `hiar run` out of an experiment's workspace, by locks that the kernel releases.

    Yields the descriptor of an open file that holds one of them, which child processes may inherit to hold it too;
    None where there is no project. Waits for such processes of a killed run, which may still be saving a state.
    Raises InUse when another run is at work.
    """
    workspace = root if name is None else root / "runs" / name
    folder = workspace / ".dvc" / "tmp"
    if not (root / ".dvc").is_dir():  # DVC will say so
        yield None
        return
    with ExitStack() as held:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            alone, shared = (
                held.enter_context((folder / lock).open("ab")) for lock in ("hiar-alone.lock", "hiar-run.lock")
            )
        place = workspace.resolve().name if name is None else workspace
        if not _lock(alone):
            raise InUse(f"{place}: another `hiar run` is running here; wait until it ends, or stop it")
        if not _lock(shared):
            tell(f"{place}: a killed run is still shutting down here; waiting for it")
            fcntl.flock(shared, fcntl.LOCK_EX)
        os.set_inheritable(shared.fileno(), True)
        yield shared.fileno()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file; False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    path.unlink(missing_ok=True)
    path.symlink_to(target)
