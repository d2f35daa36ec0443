"""Demands of a GPU, tested without one: its tensors are not mixed with the host's, and the host waits for none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import elsewhere
import pytest
from commands import ROOT, environment


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    program = "import hiar.late, runpy, sys; hiar.late.keep_out(); runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", program, elsewhere.__file__]
    run = subprocess.run(command, env=environment() | paths, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("name", ["decoder", *(walk.name for walk in elsewhere.WALKS)])
def test_a_walk_is_asked_for_without_a_halt(name: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[name] == {"name": name, "found": "elsewhere:0", "waits": []}


@pytest.mark.parametrize("name", elsewhere.CASES)
def test_an_update_is_waited_for_once_when_all_of_it_is_asked_for(name: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[name]["found"] == "elsewhere:0"
    assert set(told[name]["waits"]) == {"parallel.py: read"}
