"""The import contracts of pyproject.toml cover the whole package and hold."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
OPENED = {"hiar.worlds", "hiar.judges"}  # their interfaces are several layers below the implementations


def test_every_module_has_a_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["id"] == "floors")["layers"]
    placed = {module.strip() for layer in layers for module in layer.replace("|", ":").split(":")}
    existing = {
        module for name in sorted(modules_of("hiar")) for module in (modules_of(name) if name in OPENED else {name})
    }
    assert placed == existing | {"flows"}


def modules_of(package):
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
def test_modules_that_need_no_torch_or_networks_do_not_import_them(modules, heavy):
    """Importing torch and networks takes seconds at every start of a command or a stage."""
    program = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
