"""Each stage, killed once, ends with the bytes of an unkilled run. ``make crash-test`` kills each five times."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import start
from crash.stages import STAGES, crash, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash")
    make_workspace(folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_as_an_unkilled_one(stage: str, workspace: Path) -> None:
    result = crash(workspace, stage, moments=1, seed=0, start=start)
    (run,) = result["killed"]
    assert run["different"] == []
    assert run["sha256"] == result["clean"]
