"""A miniature project to run flows in."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.pipeline import stage_environment

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"


@dataclass(frozen=True)
class Project:
    """A project folder whose stages only do what their file of orders says."""

    folder: Path

    def order(self, stage: str, *lines: str) -> None:
        (self.folder / "orders").mkdir(exist_ok=True)
        (self.folder / "orders" / stage).write_text("\n".join(lines))

    def change(self, **sections: object) -> None:
        """Replace sections of params.yaml."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections, sort_keys=False))

    def events(self) -> list[str]:
        path = self.folder / "events.log"
        return path.read_text().splitlines() if path.exists() else []

    def times_begun(self, stage: str) -> int:
        return self.events().count(f"begin {stage}")

    def dvc(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        run = subprocess.run(command, cwd=self.folder, env=stage_environment(), capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    for path in TOY.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(
        "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    )
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    one_thread = {"device": "cpu", "precision": "no", "checkpointing": False, "threads": 1, "variant_threads": 1}
    compared = {"init": [], "distill": ["self-forcing", "hiar"], "walked": []}
    project.change(seeds=[0], compare=compared, runtime=one_thread | {"checkpoint_minutes": 5.0})
    return project


@pytest.fixture(scope="session")
def prefect_server():
    """The address of Prefect's own temporary server and database."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=600):
        yield PREFECT_API_URL.value()


@pytest.fixture
def short_folder():
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def clean_env(tmp_path, monkeypatch):
    """An environment with the S3 store's program in PATH and without any settings of the stack."""
    for name in [name for name in os.environ if name.startswith(("HIAR_", "PREFECT_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    weed = tmp_path / "bin" / "weed"
    weed.parent.mkdir()
    weed.write_text("#!/bin/sh\n")
    weed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{weed.parent}{os.pathsep}{os.environ['PATH']}")
