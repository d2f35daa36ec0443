"""A project with its own records, and a sender whose rounds are run by the tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from hiar.config import Params
from hiar.parameters import load_params
from hiar.tracking.sender import Sender
from hiar.tracking.spool import spool_folder, take_lock

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(PARAMS_FILE)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HIAR_TRACKING", "HIAR_EXPERIMENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, to copy: creating its tables takes seconds."""
    path = tmp_path_factory.mktemp("records") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, database: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "hiar").mkdir(parents=True)
    shutil.copy(database, folder)
    return folder


@pytest.fixture
def workspace(project: Path) -> Path:
    """The workspace of an experiment called "named"."""
    folder = project / "runs" / "named"
    folder.mkdir(parents=True)
    (folder / "hiar").symlink_to("../../hiar")
    return folder


@pytest.fixture
def send(project: Path) -> Iterator[Callable[[], None]]:
    """Runs one round of a new sender; no sender process is started meanwhile."""
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    with take_lock(folder) as lock:
        assert lock is not None
        yield lambda: Sender(folder).round() and None
