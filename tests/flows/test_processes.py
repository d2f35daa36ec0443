import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.processes import ProcessGroups, Stopped

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
    assert gone(pids[0])


def test_what_a_command_leaves_behind_ends_with_it(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL,\n"
        "    stderr=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))"
    )
    assert run(ProcessGroups(), code) == 0
    assert gone(int(note.read_text()))


def test_nothing_is_started_after_stop(tmp_path):
    groups = ProcessGroups()
    groups.stop()
    with pytest.raises(Stopped):
        run(groups, f"open({str(tmp_path / 'x')!r}, 'w')")
    assert not (tmp_path / "x").exists()


def gone(pid):
    """Whether a process has ended; the machine's init may take a moment to bury it."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_prints_nothing_ends_with_the_process_that_started_it(tmp_path, number):
    """The kernel tells its leader; nobody else is left to."""
    note = tmp_path / "note"
    quiet = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    starter = (
        "import os, sys; from pathlib import Path; from flows.processes import ProcessGroups\n"
        f"ProcessGroups().run([sys.executable, '-c', {quiet!r}], Path.cwd(), os.environ, print)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    end = time.monotonic() + 120
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    command = psutil.Process(int(note.read_text()))
    process.send_signal(number)
    process.wait()
    psutil.wait_procs([command], timeout=120)
    assert not command.is_running() or command.status() == psutil.STATUS_ZOMBIE
