"""Workspaces: one run at a time in each, and what is made anew in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hiar.errors import InUse
from hiar.workspace import sole_use


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_a_workspace_is_one_runs_at_a_time(root: Path) -> None:
    for name, said in ((None, root.name), ("smoke", str(root / "runs" / "smoke"))):
        with sole_use(root, name):
            with (
                pytest.raises(InUse, match=f"^{said}: another `hiar run` is at work here; wait until it ends, or stop"),
                sole_use(root, name),
            ):
                pass
            with sole_use(root, "other"):  # which is nobody's
                pass
        with sole_use(root, name):
            pass


def test_a_workspace_is_in_use_until_the_last_process_of_its_run_has_ended(root: Path) -> None:
    """The flow that `hiar run` has started outlives it for as long as its stages take to end."""
    with sole_use(root, None) as held:
        assert held is not None
        flow = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held])
    with pytest.raises(InUse), sole_use(root, None):
        pass
    flow.communicate()
    with sole_use(root, None):
        pass


def test_where_there_is_no_project_nothing_is_made(tmp_path: Path) -> None:
    with sole_use(tmp_path, None) as held:
        assert held is None
    assert os.listdir(tmp_path) == []
