"""The import contracts of pyproject.toml cover the whole package and hold."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
OPENED = {"hiar.worlds", "hiar.judges"}  # an interface each, several layers below its implementations


def test_every_room_has_a_floor():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract for contract in contracts if contract["id"] == "floors")["layers"]
    placed = {room.strip() for floor in floors for room in floor.replace("|", ":").split(":")}
    rooms = {room for name in sorted(rooms_of("hiar")) for room in (rooms_of(name) if name in OPENED else {name})}
    assert placed == rooms | {"flows"}


def rooms_of(package):
    folder = ROOT / package.replace(".", "/")
    return {
        f"{package}.{path.stem}"
        for path in folder.iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    }


def test_imports_point_down(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("hiar.cli, hiar.workspace, flows.pipeline", {"torch", "diffusers"}),
        ("hiar.judges.shapes, hiar.stages.profiles, hiar.stages.report, hiar.stages.truth", {"diffusers"}),
        ("hiar.models.card, hiar.stages.exchange", {"diffusers"}),
    ],
)
def test_what_computes_nothing_waits_for_no_torch_and_what_only_looks_for_no_networks(modules, heavy):
    """Importing torch and networks takes seconds at every start of a command or a stage."""
    program = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
