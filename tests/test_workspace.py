"""Workspaces: one run at a time in each."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import ROOT
from waiting import wait_until

from hiar.errors import InUse
from hiar.io.artifacts import MANIFEST, write_manifest
from hiar.io.files import write_text
from hiar.io.fingerprints import require_content
from hiar.workspace import run_params, sole_use


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_a_workspace_has_one_run_at_a_time(root: Path) -> None:
    for name, path in ((None, root.name), ("smoke", str(root / "runs" / "smoke"))):
        with sole_use(root, name):
            with (
                pytest.raises(InUse, match=f"^{path}: another `hiar run` is running here; wait until it ends, or stop"),
                sole_use(root, name),
            ):
                pass
            with sole_use(root, "other"):  # not in use
                pass
        with sole_use(root, name):
            pass


def test_a_run_waits_for_what_a_killed_run_left_working(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flow that `hiar run` started outlives it until its stages have ended."""
    with sole_use(root, None) as held:
        assert held is not None
        flow = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held])
    entered: list[bool] = []

    def run() -> None:
        with sole_use(root, None):
            entered.append(True)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run)
        wait_until(lambda: "a killed run is still shutting down here" in capsys.readouterr().err)
        with pytest.raises(InUse), sole_use(root, None):  # a second one that waits is refused
            pass
        assert not entered
        flow.communicate()
        waiting.result()
    assert entered == [True]


def test_the_hash_filled_in_for_imported_pairs_is_the_one_that_their_stage_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the manifest alone, which lists the rest. One that the user gave stays."""
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "experiments").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    mine, pairs = tmp_path / "experiments" / "mine.yaml", tmp_path / "given"
    mine.write_text("pairs: {source: ../../given}\n")
    assert run_params(tmp_path, "mine").pairs.source_sha256 is None
    assert (
        "given/manifest.json: is missing, and the stage that reads it will need it (source" in capsys.readouterr().err
    )
    write_text(pairs / "00000.safetensors", "rows")
    write_manifest(pairs, "pairs")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    require_content(pairs / MANIFEST, run_params(tmp_path, "mine").pairs.source_sha256, "pairs.source_sha256")
    mine.write_text(f"pairs: {{source: ../../given, source_sha256: {'0a' * 32}}}\n")
    assert run_params(tmp_path, "mine").pairs.source_sha256 == "0a" * 32


def test_outside_a_project_nothing_is_created(tmp_path: Path) -> None:
    with sole_use(tmp_path, None) as held:
        assert held is None
    assert os.listdir(tmp_path) == []
