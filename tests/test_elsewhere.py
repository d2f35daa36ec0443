"""Rules for GPUs, tested without one: device tensors never meet host tensors, and the host does not wait for them."""

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
def results() -> dict[str, dict[str, Any]]:
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    program = "import hiar.late, runpy, sys; hiar.late.keep_out(); runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", program, elsewhere.__file__]
    run = subprocess.run(command, env=environment() | paths, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("name", ["decoder", *(walk.name for walk in elsewhere.WALKS)])
def test_a_walk_never_waits_for_the_device(name: str, results: dict[str, dict[str, Any]]) -> None:
    assert results[name] == {"name": name, "found": "elsewhere:0", "waits": []}


@pytest.mark.parametrize("name", elsewhere.CASES)
def test_an_update_waits_for_the_device_once_to_read_its_metrics(name: str, results: dict[str, dict[str, Any]]) -> None:
    """There are two updates of an init, or one of the student after two of its critic."""
    assert results[name]["found"] == "elsewhere:0"
    assert results[name]["waits"] == ["parallel.py: read"] * (2 if name == "init" else 3)
