"""Where an experiment lives: the project's folder for the default one, ``runs/NAME/`` for every other.

A workspace holds its own params.yaml and everything made from it. The definition of the stages is a copy of the
project's, the code they depend on a link to it, and DVC's settings, cache and remotes are the project's, so that the
same stage on the same inputs is run once for all experiments. What is small of it can be committed (.gitignore).
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
PIPELINE = "dvc.yaml"  # copied: DVC does not read a link to it out of a commit
# In an experiment's file: the one that it is laid over, and others to be laid over it and run beside it.
OVER, BESIDE = "over", "beside"
INPUTS = ("models", "experiments")  # of the project, which params.yaml may name files in
NO_GIT = """\
# Made by `hiar run`, since there is no git repository here; it goes when there is one.
[core]
    no_scm = true
"""


def experiment_tree(root: Path, name: str | None) -> dict[str, Any]:
    """The parameters of an experiment as YAML data: params.yaml, with experiments/NAME.yaml merged over it.

    A name may be of several files, ONE+OTHER: each is merged over those before it. A file may say which one it is laid
    ``over`` itself.

    Raises UserError when there is no such experiment or a file is not valid YAML.
    """
    tree = read_yaml(root / PARAMS)
    for part in name.split("+") if name is not None else []:
        tree = merge(tree, _overrides(root, part))
    return tree


def _overrides(root: Path, part: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What experiments/PART.yaml says, over what the one says that it is laid ``over``."""
    path = override_of(root, part)
    tree = {field: value for field, value in read_yaml(path).items() if field != BESIDE}
    under = tree.pop(OVER, None)
    if under is None:
        return tree
    if not isinstance(under, str) or under in (part, *above):
        remedy = "leads back to itself; leave it out" if under in (part, *above) else "should be the name of one file"
        raise UserError(f"{path}: {OVER} = {under!r}: {remedy}")
    return merge(_overrides(root, under, (*above, part)), tree)


def experiments_beside(root: Path, name: str | None) -> list[str]:
    """The experiments that are compared with ``name`` as a whole: each is NAME+OTHER, in the order of its files.

    Where one that a file lists is laid over it, that is one of the compared, and is run alone.
    Raises UserError when it names files that there are not.
    """
    others: list[str] = []
    parts = name.split("+") if name is not None else []
    for place, part in enumerate(parts):
        path = override_of(root, part)
        listed = read_yaml(path).get(BESIDE, [])
        if not isinstance(listed, list) or not all(isinstance(other, str) for other in listed):
            raise UserError(f"{path}: {BESIDE} = {listed!r}: should be a list of names of files of this folder")
        for other in listed:
            override_of(root, other)
        if not {*listed} & {*parts[place + 1 :]}:
            others += [f"{name}+{other}" for other in listed]
    return others


def experiment_params(root: Path, name: str | None) -> Params:
    """The validated parameters of an experiment; an error names the file that holds it."""
    defaults = root / PARAMS
    if name is None:
        return parse_params(read_yaml(defaults), defaults)
    parse_params(read_yaml(defaults), defaults)
    return parse_params(experiment_tree(root, name), override_of(root, name.rpartition("+")[2]))


def run_params(root: Path, name: str) -> Params:
    """The parameters with which `hiar run` would run an experiment now: also what is in the files that they name."""
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
    """The folder of an experiment, made and brought up to date where need be; params.yaml is validated first.

    Raises UserError for parameters that are not valid, what it is to be scored by and cannot run here, and where the
    folder cannot be written.
    """
    params = experiment_params(root, name)
    check_scoring(params.score, partial(_seconds, params))
    with _settings(root):
        _do_without_git(root)
    if name is None:
        return root
    workspace = root / "runs" / name
    with locked(workspace / ".dvc" / "tmp", "hiar-open.lock"):  # stages that begin at once would meet in it
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
    """How long the videos are that an experiment compares."""
    from hiar.worlds.interface import open_world  # loads torch

    return open_world(params.world).seconds(params.sample.frames)


def _check_adopted(params: Params, workspace: Path) -> None:
    """Raise UserError where somebody else's weights are there and cannot be taken: it may be days until they are."""
    for source, weights in params.init.sources.values():
        if (workspace / source).exists():
            from hiar.worlds.interface import open_world  # loads torch

            open_world(params.world).check_foreign(workspace / source, weights)


def _pin_files(tree: dict[str, Any], workspace: Path) -> None:
    """Say what is in the files that parameters name, where it is not said: DVC compares parameters, not these files.

    What is missing is left to the stage that reads it, perhaps on another machine, and told: it may be days away.
    """

    def pin(settings: dict[str, Any], field: str, content: Callable[[Path], str], part: str = "") -> None:
        name, said = settings.get(field), f"{field}_sha256"
        if name is None or settings.get(said) is not None:
            return
        if (path := workspace / name / part).exists():
            settings[said] = content(path)
        else:
            tell(f"{path}: is not there, and the stage that reads it will need it ({field} of the parameters)")

    pin(tree["world"], "prompts", file_hash)
    pin(tree["sample"], "prompts", file_hash)
    content = partial(fingerprint, cache=cache_folder())
    for settings in (tree["init"], tree["init"].get("teacher", {})):
        pin(settings, "source", content)
    pin(tree["distill"], "real_score", content, "transformer")  # TRANSFORMER of `hiar.worlds`, which imports torch
    pin(tree["pairs"], "source", content, MANIFEST)


@contextmanager
def _settings(root: Path) -> Iterator[None]:
    """Turn DVC's complaint about the project's settings into a UserError."""
    from dvc.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise UserError(f"{root / '.dvc' / 'config'}: {' '.join(str(error).split())}; mend it") from None


def _share_settings(root: Path, workspace: Path) -> None:
    """Let the workspace, a DVC repository of its own, have the project's DVC settings of both levels, and its cache."""
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
        settings = project.load_one(level)  # in which paths are absolute; they are written as seen from the workspace
        if level == "repo":
            settings["cache"].setdefault("dir", RelPath((root / ".dvc" / "cache").absolute()))
        if own.load_one(level) != settings:
            with own.edit(level, validate=False) as mine:
                mine.clear()
                mine.update(settings)


def _do_without_git(workspace: Path) -> None:
    """Tell DVC when there is no git repository, which it needs to be told, and take that back when there is one."""
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

    Yields the number of an open file that holds one of them, which processes may inherit to hold it too; None where
    there is no project. What such processes of a run that was killed still do, as saving a state, is waited for.
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
            raise InUse(f"{place}: another `hiar run` is at work here; wait until it ends, or stop it")
        if not _lock(shared):
            tell(f"{place}: a run that was killed is about to end here; waiting for it")
            fcntl.flock(shared, fcntl.LOCK_EX)
        os.set_inheritable(shared.fileno(), True)
        yield shared.fileno()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file, unless another process has it locked."""
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
