"""Devices: a machine with several runs several stages at once, never two on one device, whatever is killed."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from commands import environment
from sampled import ROOT
from waiting import wait_until

from flows import devices
from flows.devices import device_names, environment_on, take_devices
from hiar.errors import UserError
from hiar.parameters import load_params

EIGHT = ",".join(map(str, range(8)))
# Takes devices, writes down their names, and sleeps until it is killed.
HOLDER = """\
import sys, time
from pathlib import Path
from flows.devices import take_devices
with take_devices(int(sys.argv[1])) as devices:
    Path(sys.argv[2]).write_text(",".join(devices))
    time.sleep(600)
"""


# A flow whose stage takes a while to save its state on SIGTERM.
FLOW = """\
import os, sys
from pathlib import Path
from flows.devices import take_devices
from flows.processes import ProcessGroups
stage = '''
import signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: Path("saves").touch())
Path("begun").touch()
while not Path("saved").exists():
    time.sleep(0.05)
'''
with take_devices(8):
    ProcessGroups().run([sys.executable, "-c", stage], Path.cwd(), os.environ, print)
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HIAR_DEVICES", EIGHT)
    monkeypatch.setenv("HIAR_DEVICE_LOCKS", str(tmp_path / "locks"))


@pytest.fixture
def hold(tmp_path):
    """Starts a process that requests ``count`` devices; returns it and the file with the names of those it has."""
    started = []

    def hold(count):
        note = tmp_path / f"note-{len(started)}"
        own = {name: os.environ[name] for name in ("HIAR_DEVICES", "HIAR_DEVICE_LOCKS")}
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(count), note], env=environment() | own)
        started.append(process)
        return process, note

    yield hold
    for process in started:
        process.kill()
        process.wait()


def devices_of(note):
    return note.read_text().split(",") if note.exists() and note.read_text() else []


def test_eight_stages_have_a_device_each_and_a_ninth_takes_that_of_one_that_was_killed(hold):
    held = [hold(1) for _ in range(9)]
    wait_until(lambda: sum(bool(devices_of(note)) for _, note in held) == 8)
    taken = Counter(device for _, note in held for device in devices_of(note))
    assert taken == Counter(EIGHT.split(","))
    (late,) = [note for _, note in held if not devices_of(note)]
    victim, note = next(pair for pair in held if devices_of(pair[1]))
    freed = devices_of(note)
    victim.kill()
    wait_until(lambda: devices_of(late) == freed)


def test_a_device_stays_taken_until_its_stage_ends_even_if_the_flow_was_killed(tmp_path):
    own = {name: os.environ[name] for name in ("HIAR_DEVICES", "HIAR_DEVICE_LOCKS")}
    flow = subprocess.Popen([sys.executable, "-c", FLOW], cwd=tmp_path, env=environment() | own)
    wait_until((tmp_path / "begun").exists)
    flow.kill()
    flow.wait()
    wait_until((tmp_path / "saves").exists)
    with ExitStack() as held:
        assert devices._try(devices._folder(), device_names(), 1, held) == []
    (tmp_path / "saved").touch()
    with take_devices(8) as taken:
        assert len(taken) == 8


def test_two_stages_that_need_most_devices_take_turns(hold):
    first, second = hold(5), hold(5)
    wait_until(lambda: devices_of(first[1]) or devices_of(second[1]))
    one, other = (first, second) if devices_of(first[1]) else (second, first)
    with take_devices(3) as rest:  # waiting processes hold no device
        assert {*rest, *devices_of(one[1])} == {*EIGHT.split(",")}
    assert devices_of(other[1]) == []
    one[0].kill()
    wait_until(lambda: len(devices_of(other[1])) == 5)


def test_a_request_for_more_devices_than_exist_takes_all():
    with take_devices(20) as devices:
        assert devices == EIGHT.split(",")
        assert environment_on(devices)["CUDA_VISIBLE_DEVICES"] == EIGHT
        assert environment_on(devices)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # else CUDA numbers the fastest first


@pytest.mark.parametrize("names", ["0,0", ",", "0,../1"])
def test_invalid_device_names_are_refused(names, monkeypatch):
    monkeypatch.setenv("HIAR_DEVICES", names)
    with pytest.raises(UserError, match=r"HIAR_DEVICES = .*: should list each device once"):
        device_names()


def test_without_a_gpu_cores_are_the_devices(monkeypatch):
    """As many as `hiar run` has single-threaded stages at once, except on large machines."""
    for name in ("HIAR_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has GPUs")
    for cores, names in ((1, ["cpu-0"]), (2, ["cpu-0", "cpu-1"]), (64, ["cpu-0", "cpu-1", "cpu-2", "cpu-3"])):
        monkeypatch.setattr("flows.devices.process_cores", lambda cores=cores: cores)
        assert device_names() == names
    assert environment_on(["cpu"]) == environment_on(["cpu-1", "cpu-0"]) == {}


def test_hidden_gpus_are_no_devices(monkeypatch):
    """Otherwise stages meant for the CPU would see them again."""
    monkeypatch.delenv("HIAR_DEVICES")
    monkeypatch.setattr("flows.devices._nodes", lambda: [Path("/dev/nvidia0"), Path("/dev/nvidia1")])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_names() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_names()[0] == "cpu-0"


def test_devices_are_locked_by_name_even_if_processes_list_different_ones(monkeypatch):
    with take_devices(1) as first:
        assert first == ["0"]
        monkeypatch.setenv("HIAR_DEVICES", "3, 0")
        with take_devices(1) as second:
            assert second == ["3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert device_names() == ["3", "0"]  # our own variable takes precedence
    monkeypatch.delenv("HIAR_DEVICES")
    assert device_names() == ["6", "7"]


def test_a_lock_folder_belongs_to_one_user(tmp_path, monkeypatch):
    monkeypatch.delenv("HIAR_DEVICE_LOCKS")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.umask(0)
    try:
        with take_devices(1):
            (folder,) = tmp_path.iterdir()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    if os.geteuid() == 0:  # only root may change a folder's owner
        os.chown(folder, 12345, 12345)
        with pytest.raises(UserError, match="belongs to another user; set HIAR_DEVICE_LOCKS"), take_devices(1):
            pass
        monkeypatch.setattr(os, "geteuid", lambda: 777)  # another user's folder has another name
        with pytest.raises(UserError), take_devices(1):
            pass
        assert len(list(tmp_path.iterdir())) == 2


def test_only_one_process_at_a_time_chooses_devices(tmp_path):
    """Otherwise two processes could each take some of the devices that both need, and retry for ever."""
    with take_devices(1):
        pass
    with (tmp_path / "locks" / "choosing.lock").open("ab") as choosing:
        fcntl.flock(choosing, fcntl.LOCK_SH)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: take_devices(1).__enter__())
            assert not done(waiting, 0.5)
            fcntl.flock(choosing, fcntl.LOCK_UN)
            assert waiting.result(60) == ["0"]


def done(future, seconds):
    """Whether there is a result within ``seconds``."""
    return bool(wait([future], seconds).done)


def test_single_process_stages_take_one_device():
    """So VBench's dimensions run side by side, while trainings and sampling have all devices."""
    runtime = load_params(ROOT / "params.yaml").runtime.model_copy(update={"processes": 8})
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    found = {name: runtime.processes_of(f"{name}@0-hiar") for name in stages}
    sampling = {name for name in found if name.startswith("sample")}
    assert len(sampling) == 4
    assert {name for name, count in found.items() if count == 8} == {"teacher", "pairs", "init", "distill"} | sampling
    assert set(found.values()) == {1, 8}
    assert runtime.model_copy(update={"processes": None}).processes_of("distill@0-hiar") == 1
