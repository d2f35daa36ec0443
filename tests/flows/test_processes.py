import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from flows.processes import ProcessGroups, Stopped, stage_environment

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print(child.pid, flush=True)
time.sleep(600)
"""
IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def run(groups, code, on_line=lambda line: None):
    return groups.run([sys.executable, "-c", code], Path.cwd(), os.environ, on_line)


def test_lines_come_in_order_with_errors_and_the_exit_code_is_returned():
    lines = []
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); sys.exit(7)"
    assert run(ProcessGroups(), code, lines.append) == 7
    assert lines == ["one", "two"]


def test_a_command_ended_by_a_signal_returns_its_number():
    assert run(ProcessGroups(), "import os; os.kill(os.getpid(), 9)") == -9


def test_text_that_is_not_utf8_does_no_harm():
    lines = []
    run(ProcessGroups(), r"import sys; sys.stdout.buffer.write(b'caf\xe9\n')", lines.append)
    assert len(lines) == 1


def test_stop_ends_the_whole_group_even_what_ignores_sigterm():
    groups, pids, codes = ProcessGroups(), [], []
    started = threading.Event()

    def on_line(line):
        pids.append(int(line))
        started.set()

    code = STUBBORN.format(child=IGNORES_TERM)
    thread = threading.Thread(target=lambda: codes.append(run(groups, code, on_line)))
    thread.start()
    assert started.wait(300)
    groups.stop(grace=0.2)
    thread.join(300)
    assert codes == [-9]
    wait_until(lambda: gone(pids[0]))


def test_children_that_a_command_leaves_behind_are_ended(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL,\n"
        "    stderr=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))"
    )
    assert run(ProcessGroups(), code) == 0
    wait_until(lambda: gone(int(note.read_text())))


def test_nothing_is_started_after_stop(tmp_path):
    groups = ProcessGroups()
    groups.stop()
    with pytest.raises(Stopped):
        run(groups, f"open({str(tmp_path / 'x')!r}, 'w')")
    assert not (tmp_path / "x").exists()


def gone(pid):
    """Whether a process has ended; it may be a zombie until init reaps it."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_prints_nothing_ends_with_the_process_that_started_it(tmp_path, number):
    """The kernel signals its leader, since no other process is left to do so."""
    note = tmp_path / "note"
    quiet = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    starter = (
        "import os, sys; from pathlib import Path; from flows.processes import ProcessGroups\n"
        f"ProcessGroups().run([sys.executable, '-c', {quiet!r}], Path.cwd(), os.environ, print)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    wait_until(lambda: note.exists() and note.read_text())
    command = psutil.Process(int(note.read_text()))
    process.send_signal(number)
    process.wait()
    psutil.wait_procs([command], timeout=120)
    assert not command.is_running() or command.status() == psutil.STATUS_ZOMBIE


SLOW_TO_END = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(1)
    Path(sys.argv[1], "checkpoint").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


def test_every_group_is_terminated_and_has_the_time_that_it_needs(tmp_path):
    groups, folders = ProcessGroups(), [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    work = [[sys.executable, "-c", SLOW_TO_END, folder] for folder in folders]
    work.append([sys.executable, "-c", "import time; time.sleep(600)"])  # ends at once
    threads = [threading.Thread(target=groups.run, args=(one, tmp_path, os.environ, print)) for one in work]
    for thread in threads:
        thread.start()
    wait_until(lambda: all((folder / "ready").exists() for folder in folders))
    groups.stop(grace=300)
    assert all((folder / "checkpoint").exists() for folder in folders)
    for thread in threads:
        thread.join(300)


def test_a_group_that_ignores_sigterm_is_killed_after_its_starter_is_gone(tmp_path):
    """Once the process that would call `stop` is gone, the group's leader does the same."""
    started = (
        "import sys; from flows import leader\n"
        f"leader.GRACE = 0.2; sys.argv[1:] = [sys.executable, '-c', {IGNORES_TERM + '#'!r}]; leader.main()"
    )
    leader = subprocess.Popen([sys.executable, "-c", started], stdin=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: [one for one in psutil.Process(leader.pid).children() if ignores_term(one.pid)])
    (command,) = psutil.Process(leader.pid).children()
    leader.stdin.close()
    assert leader.wait(300) == -signal.SIGKILL
    wait_until(lambda: gone(command.pid))


def ignores_term(pid):
    """Whether a process already ignores SIGTERM."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_stage_finds_the_programs_of_its_own_python_and_the_proxies_of_its_user(tmp_path, monkeypatch):
    other = tmp_path / Path(sys.executable).name
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HIAR_NO_PROXY", "example.org")
    environment = stage_environment()
    assert shutil.which(other.name, path=environment["PATH"]) == sys.executable
    assert environment["PATH"].endswith(os.environ["PATH"])
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.org"
    monkeypatch.delenv("HIAR_NO_PROXY")
    assert stage_environment()["NO_PROXY"] == "*"
