"""The project folder of a deployed run: its machine's working folder, or a clone of the deployed commit.

These are steps of prefect.yaml. A deployment stores a repository and a commit, but no folder of the deploying machine.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hiar.errors import UserError
from hiar.io.files import remove, writing

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

PROJECT = "HIAR_PROJECT"  # of a worker: the working folder for its runs; unset: they work in clones
REPOSITORY = "HIAR_REPOSITORY"  # of a worker: what it clones, if it cannot use the deployed address
CLONES = "HIAR_CLONES"  # of a worker: the folder of its clones; default: ~/.cache/hiar/clones
COMMIT = "HIAR_COMMIT_OF_RUN"  # of a stage's run: its experiment's commit; another may have been deployed since
LABEL = "hiar.commit"  # of a run in a clone: the commit that it resumes with, whatever was deployed since
MODELS = "HIAR_MODELS"  # of a worker: base models and prompts, which are in no repository; linked as models/ in clones


class Away(UserError):
    """The repository cannot be cloned at the moment."""


def describe() -> dict[str, str]:
    """The commit of the current folder and the address of its remote, without a password; "" if it has no remote."""
    repository = _git("config", "--default", "", "--get", "remote.origin.url")
    return {"commit": _git("rev-parse", "HEAD"), "repository": _without_password(repository)}


def open_project(repository: str, commit: str) -> dict[str, str]:
    """The project's folder, cloned if needed. Raises UserError if there is neither a working folder nor a clone.

    The error is then in the run's log, and the run has failed. If the repository cannot be reached, the worker reports
    the run as crashed instead, and it is tried again.
    """
    try:
        return _open_project(repository, commit)
    except UserError as error:
        _end_run(error)
        raise


def _open_project(repository: str, commit: str) -> dict[str, str]:
    folder = os.environ.get(PROJECT)
    if folder is not None:
        if not Path(folder, "dvc.yaml").is_file():
            raise UserError(f"{PROJECT} = {folder}: holds no dvc.yaml; set it to the project's folder on this machine")
        return {"directory": folder}
    commit = os.environ.get(COMMIT) or _commit_of_run(commit)
    clone = _clone(os.environ.get(REPOSITORY) or repository, commit)
    # The stages run the commit's code, not the worker's installation.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.fspath(clone), os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, os.fspath(clone))
    return {"directory": os.fspath(clone)}


def commit_of(folder: Path) -> str:
    """The short hash of a folder's commit, followed by "+" if files differ from it; "" without git."""
    try:
        return _git("describe", "--always", "--dirty=+", "--exclude=*", folder=folder)
    except UserError:
        return ""


def head_of(folder: Path) -> str:
    """The full hash of a folder's commit; "" without git."""
    try:
        return _git("rev-parse", "HEAD", folder=folder)
    except UserError:
        return ""


def fetch_commits(folder: Path) -> None:
    """Fetch all commits, branches and tags of a repository's remotes; its files do not change.

    A worker's clone is made once, for one commit, and lacks what was committed since.
    Raises UserError when a remote cannot be reached, or has another commit for a tag.
    """
    _git("fetch", "--all", "--tags", "--quiet", folder=folder)


def _end_run(error: UserError) -> None:
    """Log why the run of this process ends, and mark it as failed: Prefect's worker sees only an exit code."""
    from prefect.client.orchestration import get_client
    from prefect.logging import get_logger
    from prefect.states import Failed

    if run := os.environ.get("PREFECT__FLOW_RUN_ID"):
        get_logger("prefect.flow_runs").error(str(error), extra={"flow_run_id": run})
        if not isinstance(error, Away):
            state: State[Any] = Failed(message=str(error))
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(run), state)


def _commit_of_run(deployed: str) -> str:
    """The commit with which the run of this process began; if it begins now, the ``deployed`` one, which is stored."""
    from prefect.client.orchestration import get_client

    if (run := os.environ.get("PREFECT__FLOW_RUN_ID")) is None:
        return deployed
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(UUID(run)).labels.get(LABEL)
        if known is None:
            client.update_flow_run_labels(UUID(run), {LABEL: deployed})
    return deployed if known is None else str(known)


def _clone(repository: str, commit: str) -> Path:
    if not repository or repository.startswith("-"):
        raise UserError(f"{REPOSITORY}: is not set, and the deployment names no repository; set it, or {PROJECT}")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UserError(f"commit = {commit}: is not a commit hash; deploy again from a clone of the project")
    folder = Path(os.environ.get(CLONES) or Path.home() / ".cache" / "hiar" / "clones")
    clone = folder / commit
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not clone.exists():
                remove(partial := folder / f"{commit}.partial")
                try:
                    _git("clone", "--quiet", "--no-checkout", "--", repository, os.fspath(partial))
                except UserError as error:
                    raise Away(str(error)) from None
                try:
                    _git("checkout", "--quiet", "--detach", commit, folder=partial)
                except UserError:
                    remove(partial)  # else a whole repository would lie there unnoticed
                    raise
                partial.rename(clone)
            if (models := os.environ.get(MODELS)) and not (clone / "models").exists():
                if not Path(models).is_dir():
                    raise UserError(f"{MODELS} = {models}: is not a folder; name the folder of the base models")
                (clone / "models").symlink_to(Path(models).resolve())
    return clone


def _git(*arguments: str, folder: Path | None = None) -> str:
    own = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    run = subprocess.run(["git", *arguments], cwd=folder, env=own, check=False, capture_output=True, text=True)
    if run.returncode != 0:
        said = _without_password(" ".join(run.stderr.split()))[:300]
        raise UserError(f"git {arguments[0]}: {said}; fix that and run again")
    return run.stdout.strip()


def _without_password(text: str) -> str:
    """The text without users and passwords in addresses, some of which git prints without their beginning.

    The user of an ssh address stays, as it is needed to log in.
    """
    text = re.sub(r"(?<=ssh://)([^/@:\s]+):[^/@\s]*@", r"\1@", text)
    return re.sub(r"(?<=//)(?<!ssh://)[^/@\s]*@|[^/@\s]*:[^/@\s]*@", "", text)
