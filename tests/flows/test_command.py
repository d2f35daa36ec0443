"""`hiar run`, as a command."""

import os
import shutil
import signal
import subprocess
import sys
from hashlib import md5
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from flows.__main__ import _end
from flows.command import DATABASE, check_code, flow_environment, run_experiment
from hiar.errors import UserError

HIAR = [sys.executable, "-m", "hiar"]
PATIENCE = 300  # seconds, for a loaded machine


def hiar(project, *arguments):
    return subprocess.run([*HIAR, *arguments], cwd=project.folder, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """A user without any Prefect settings."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


def test_when_all_is_up_to_date_the_comparison_is_printed_and_prefect_left_alone(project, capsys):
    project.dvc("repro")
    run = hiar(project, "run")
    assert run.returncode == 0, run.stderr
    assert "everything is up to date" in run.stdout
    assert "| HiAR " in run.stdout
    assert "reports/index.html" in run.stdout
    assert project.times_begun("codec-0") == 1
    assert not (project.folder / ".prefect").exists()
    run = hiar(project, "run", "--dry-run", "--force")
    assert "score: forced" in run.stdout
    assert run.stdout.splitlines()[-1] == "4 stage(s) would run"  # none of them from a cache
    (project.folder / "dvc.lock").unlink()
    name = md5((project.folder / "out" / "distill-0-hiar").read_bytes()).hexdigest()
    (project.folder / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]).unlink()
    capsys.readouterr()
    assert run_experiment(project.folder, None, dry_run=True) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    kept = {line.partition(":")[0] for line in lines if line.endswith("; made before, restored from DVC's cache")}
    assert kept == {"codec@0", "distill@0-self-forcing"}
    assert last == "4 stage(s) would run, 2 of them from DVC's cache"


def test_a_users_prefect_settings_take_precedence_over_those_of_the_flow(tmp_path, monkeypatch):
    environment = flow_environment(tmp_path)
    assert environment["PREFECT_HOME"] == str(tmp_path / ".prefect")
    assert environment[DATABASE] == "sqlite+aiosqlite:///.prefect/prefect.db"
    given = {"PREFECT_HOME": str(tmp_path / "mine"), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "7"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment = flow_environment(tmp_path)
    assert environment.items() >= given.items()
    assert DATABASE not in environment  # the database is in the user's PREFECT_HOME


def test_a_project_whose_code_differs_from_the_running_code_is_refused(tmp_path):
    root = Path(__file__).parents[2]
    for package in ("hiar", "flows"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    check_code(tmp_path)
    for file in (tmp_path / "flows" / "leader.py", tmp_path / "hiar" / "more.py"):
        before = file.read_bytes() if file.exists() else None
        file.write_text("# changed here\n")
        with pytest.raises(UserError, match=rf"{file.parent.name}: differs from .*, whose code this `hiar` runs"):
            check_code(tmp_path)
        file.unlink() if before is None else file.write_bytes(before)
    check_code(tmp_path)


def test_a_dry_run_tells_what_would_run_and_runs_nothing(project):
    run = hiar(project, "run", "--dry-run")
    assert run.returncode == 0
    assert "codec@0: " in run.stdout
    assert "4 stage(s) would run" in run.stdout
    assert project.events() == []


def test_a_mistake_in_a_stage_ends_with_its_line_and_code_and_no_traceback(project):
    project.dvc("repro", "codec@0")
    project.order("codec-0", "say error: params.yaml: codec.patch = 0: should be positive", "exit 2")
    run = hiar(project, "run", "--force")  # else the stage, which is up to date, would not run
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "error: codec@0: params.yaml: codec.patch = 0: should be positive"
    assert "Traceback" not in run.stdout + run.stderr
    assert (project.folder / ".prefect").is_dir()


@pytest.fixture
def start(project):
    """Starts a run and returns it once a stage is running."""
    started = []

    def start():
        project.order("codec-0", "touch started", "wait never")
        run = subprocess.Popen(
            [*HIAR, "run"],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(run)
        wait_until((project.folder / "started").exists)
        return run

    yield start
    for run in started:
        run.kill()
        run.wait()


def test_ctrl_c_ends_the_stages_and_the_server_too(project, start):
    """A terminal sends it to the whole process group."""
    run = start()
    lock = str(project.folder / ".dvc" / "tmp" / "hiar-run.lock")
    (flow,) = psutil.Process(run.pid).children()
    assert lock in [file.path for file in flow.open_files()]  # no other run may begin until the flow has ended
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, output
    assert output.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in output
    wait_until(lambda: processes_in(project.folder) == [])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.long)]
)
def test_a_killed_run_leaves_no_stage_running(project, start, number, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    run = start()
    run.send_signal(number)
    output, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    wait_until(lambda: processes_in(project.folder) == [])
    project.order("codec-0")
    project.dvc("repro", "codec@0")


# A flow that goes on whatever it is asked, and so does what it started.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("told.new").write_text(" ".join([str(child.pid), *sys.argv[1:]]))
pathlib.Path("told.new").rename("told")
time.sleep(600)
"""
IMPATIENT = """
import pathlib, sys
from flows import command
command.STOPPING_SECONDS = 1
sys.exit(command._run_flow(pathlib.Path(sys.argv[1]), "mine", True, None))
"""


def test_a_flow_that_does_not_stop_in_time_is_killed_with_all_that_it_started(tmp_path):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    (tmp_path / "flows" / "__main__.py").write_text(STUBBORN)
    environment = os.environ | {"PYTHONSAFEPATH": ""}  # so that each finds the flows of its own folder
    command = [sys.executable, "-c", IMPATIENT, tmp_path]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment)
    try:
        wait_until((tmp_path / "told").exists)
        number, *told = (tmp_path / "told").read_text().split()
        assert told == ["--force", "--", "mine"]
        child = psutil.Process(int(number))
        run.terminate()
        assert run.wait(60) == 128 + signal.SIGKILL
    finally:
        run.kill()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_second_signal_does_not_interrupt_the_shutdown():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with pytest.raises(SystemExit) as ended:
            _end(signal.SIGINT, None)
        assert ended.value.code == 130
        assert [signal.getsignal(number) for number in numbers] == 3 * [signal.SIG_IGN]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def processes_in(folder):
    """Processes whose working directory is in ``folder``."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.cwd().startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found
