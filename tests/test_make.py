"""`make` with the Pythons that a machine may have; they are stand-ins, so that nothing is installed."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from commands import ROOT, environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = ("awk", "cat", "chmod", "cp", "grep", "head", "make", "mkdir", "touch", "xargs")
# Reports its version, makes virtual environments with copies of itself, and records what pip is called with.
PYTHON = """\
#!/bin/sh
case "$1 $2" in
    "-c "*ensurepip*) exit {bare};;
    "-c "*) exec {python} -c "import sys; sys.version_info = {version}; $2";;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;
    "-m pip") echo "{name} $*" >> installed; case "$*" in *--editable*)
        echo "#!$(pwd -P)/.venv/bin/python" > .venv/bin/hiar; chmod +x .venv/bin/hiar;; esac;;
esac
"""
SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2; exit 127\n"  # pyenv's for a version that is not selected


class Machine:
    """The project's folder on a machine with some Pythons."""

    def __init__(self, folder: Path) -> None:
        self.project, self.programs = folder / "the project", folder / "programs"
        self.project.mkdir()
        self.programs.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, self.project)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.programs / tool).symlink_to(found)

    def add(self, name: str, version: tuple[int, int] | None, bare: bool = False) -> None:
        """Add a Python of this version; bare: without venv; None: a shim without a Python behind it."""
        text = PYTHON.format(name=name, version=version, python=sys.executable, bare=int(bare)) if version else SHIM
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def make(self, *arguments: str, code: int = 0, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / "make"), *arguments]
        env = {"PATH": str(self.programs), "HOME": os.environ.get("HOME", "/")}
        run = subprocess.run(command, cwd=folder or self.project, env=env, capture_output=True, text=True)
        assert run.returncode == code, run.stdout + run.stderr
        return run

    def mistake(self, *arguments: str, folder: Path | None = None) -> str:
        """The one error line besides make's own lines."""
        lines = self.make(*arguments, code=2, folder=folder).stderr.splitlines()
        (line,) = [line for line in lines if not line.startswith("make")]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    @property
    def installed(self) -> list[str]:
        path = self.project / "installed"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3.11": (3, 11), "python3.12": (3, 12), "python3.13": (3, 13)}, "python3.13"),
        ({"python3.11": (3, 11), "python3.12": (3, 12), "python3.13": None, "python3": (3, 9)}, "python3.12"),
        ({"python3.12": (3, 12), "python3": (3, 14)}, "python3.12"),
        ({"python3": (3, 13)}, "python3"),
        ({"python3": (3, 14), "python": (3, 11)}, "python"),
    ],
)
def test_the_newest_supported_python_that_runs_is_taken(machine: Machine, pythons: dict, chosen: str) -> None:
    for name, version in pythons.items():
        machine.add(name, version)
    assert f"installing into .venv with {chosen}, once" in machine.make("setup").stdout
    *parts, check, own = machine.installed
    assert all(line.startswith(f"{chosen} -m pip install") for line in (*parts, own))
    assert check == f"{chosen} -m pip check"
    asked = [line for part in parts for line in (machine.project / part.split()[-1]).read_text().splitlines()]
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert sorted(asked) == sorted(lock)
    machine.make("setup")
    assert len(machine.installed) == 6


def test_a_missing_python_or_module_is_named_with_its_remedy(machine: Machine) -> None:
    assert machine.mistake("setup").startswith(
        "none of python3.13 python3.12 python3.11 python3 python is a Python 3.11"
    )
    machine.add("python3", (3, 14))
    machine.add("python3.10", (3, 10))
    line = machine.mistake("setup")
    assert "apt-get install python3 python3-venv" in line
    assert line.endswith("or name it: make PYTHON=/path/to/python")
    machine.add("python3.12", (3, 12), bare=True)  # as Debian's is
    assert machine.mistake("setup") == "python3.12: has no module venv; install it (apt-get install python3.12-venv)"
    assert "none of python3.10 is a Python 3.11 to 3.13 that runs" in machine.mistake("setup", "PYTHON=python3.10")
    assert not (machine.project / ".venv").exists()
    machine.add("python3.11", (3, 11))
    assert "with python3.11, once" in machine.make("setup").stdout


def test_an_environment_of_another_python_or_another_place_is_not_used(machine: Machine, tmp_path: Path) -> None:
    machine.add("python3.12", (3, 12))
    machine.make("setup")
    shutil.copytree(machine.project, tmp_path / "copy", symlinks=True)
    line = machine.mistake("demo", folder=tmp_path / "copy")
    assert (
        line == ".venv: was made in another folder, whose code it runs; remove it (rm -r .venv), and make rebuilds it"
    )
    machine.add("python3.9", (3, 9))
    shutil.copy(machine.programs / "python3.9", machine.project / ".venv" / "bin" / "python")
    (machine.project / "requirements.lock").touch()
    assert machine.mistake("setup").startswith(".venv: is not of Python 3.11 to 3.13; remove it")


def test_the_lock_has_what_each_python_needs() -> None:
    """According to the metadata of the packages installed here; pip would check the same with an index."""
    lines = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != "#"]
    for version in ("3.11", "3.12", "3.13"):
        marks = {"python_version": version, "python_full_version": f"{version}.0", "extra": ""}
        locked = {canonicalize_name(line.name) for line in lines if not line.marker or line.marker.evaluate(marks)}
        missing = set()
        for name in locked - {"torch"}:  # which GPU libraries it requires depends on its index
            try:
                needed = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:  # not needed by this Python
                continue
            missing |= {
                f"{one.name} for {name} on {version}"
                for one in needed
                if (not one.marker or one.marker.evaluate(marks)) and canonicalize_name(one.name) not in locked
            }
        assert missing == set()


def test_the_lock_has_the_package_with_which_mlflow_records_gpus() -> None:
    """MLflow asks for it only on machines with a GPU, in a warning that is easily missed."""
    from mlflow.system_metrics.metrics import gpu_monitor

    (wanted,) = re.findall(r"pip install ([\w-]+)", inspect.getsource(gpu_monitor))
    assert f"\n{wanted}==" in (ROOT / "requirements.lock").read_text()


@pytest.fixture
def pages(machine: Machine) -> Machine:
    """A machine set up with this Python, to start MLflow's pages."""
    (machine.project / ".venv" / "bin").mkdir(parents=True)
    python = machine.project / ".venv" / "bin" / "python"
    path = environment()["PYTHONPATH"]
    python.write_text(f"#!/bin/sh\nPYTHONPATH='{path}' exec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    (machine.project / ".venv" / ".ready").touch()
    return machine


def test_a_port_in_use_or_out_of_range_is_named(pages: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = pages.mistake("mlflow", f"PORT={port}")
    assert re.fullmatch(rf"PORT = {port}: address already in use; choose another, as in make mlflow PORT=\d+", line)
    for port in ("http", "0", "65536", "9" * 30, "-1"):
        assert pages.mistake("mlflow", f"PORT={port}").startswith(f"PORT = {port}: is not a port; give 1 to 65535")


def test_an_unreadable_mlflow_database_is_named_and_kept(pages: Machine) -> None:
    (pages.project / "mlflow.db").write_text("no database, but of somebody" * 10)
    assert pages.mistake("mlflow", f"PORT={free_port()}").startswith(
        "mlflow.db: cannot be read (file is not a database)"
    )
    assert "of somebody" in (pages.project / "mlflow.db").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_modules_of_tests_that_make_runs_can_be_imported() -> None:
    """From the project's folder and without pytest's path, as make starts it."""
    modules = sorted(set(re.findall(r"-m (tests\.[\w.]+)", (ROOT / "Makefile").read_text())))
    assert {"tests.chaos", "tests.crash"} < set(modules)
    names = [name if "." in name.removeprefix("tests.") else f"{name}.__main__" for name in modules]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    run = subprocess.run([sys.executable, "-c", program, *names], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
