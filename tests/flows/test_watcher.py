"""The watcher reschedules dead runs, a bounded number of times, and touches nothing else."""

import http.server
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from types import SimpleNamespace
from uuid import uuid4

import pytest
from waiting import wait_until

from flows.stack import watcher

pytestmark = pytest.mark.usefixtures("prefect_server")
AGO = datetime.now(UTC) - timedelta(hours=1)


def nothing():
    """A flow's body."""


@pytest.fixture
def lab():
    """A client, and functions that make runs in given states (``above``: the parent run), read states, and beat."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    with get_client(sync_client=True) as client:
        one = flow(nothing)
        deployment = client.create_deployment(flow_id=client.create_flow(one), name="watched")

        def run(*states, deployed=True, above=None):
            if deployed:
                waits = client.create_task_run(task(nothing), above, dynamic_key=str(uuid4())).id if above else None
                made = client.create_flow_run_from_deployment(deployment, state=Scheduled(), parent_task_run_id=waits)
            else:
                made = client.create_flow_run(one)
            for state in states:
                client.set_flow_run_state(made.id, state, force=True)
            return made.id

        def state(run):
            return client.read_flow_run(run).state.name

        def beat(run, ahead=0):
            """Send a heartbeat by a clock that is ``ahead`` seconds ahead; returns when the server received it."""
            event = {"event": watcher.HEARTBEAT, "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}}
            sent = event | {"id": str(uuid4()), "occurred": (datetime.now(UTC) + timedelta(seconds=ahead)).isoformat()}
            before, times = watcher.last_heartbeat(client, run, datetime.now(UTC)), []
            client._client.post("/events", json=[sent]).raise_for_status()
            wait_until(
                lambda: times.append(watcher.last_heartbeat(client, run, datetime.now(UTC))) or times[-1] != before
            )
            return times[-1]

        yield SimpleNamespace(client=client, run=run, state=state, beat=beat)
        for made in client.read_flow_runs():
            client.delete_flow_run(made.id)


def look(lab, seconds):
    return watcher.look(lab.client, AGO, datetime.now(UTC) + timedelta(seconds=seconds))


def test_only_runs_that_were_silent_for_long_are_rescheduled(lab):
    from prefect.states import Completed, Failed, Pending, Running

    runs = {state.name: lab.run(state) for state in (Running(), Pending(), Failed())}
    runs["Completed"] = lab.run(Running(), Completed())
    alone = lab.run(Running(), deployed=False)
    assert look(lab, 60) == []
    assert len(look(lab, 80)) == 2
    states = {name: lab.state(run) for name, run in runs.items()}
    assert states == {"Running": "AwaitingRetry", "Pending": "Pending", "Failed": "Failed", "Completed": "Completed"}
    assert lab.state(alone) == "Running"
    look(lab, 120)
    assert lab.state(runs["Pending"]) == "AwaitingRetry"


def test_a_run_whose_worker_died_before_it_could_cancel_it_is_cancelled(lab):
    from prefect.states import Cancelling, Running

    dead, alone = lab.run(Running(), Cancelling()), lab.run(Running(), Cancelling(), deployed=False)
    assert look(lab, 0) == []
    (line,) = look(lab, 80)
    assert str(dead) in line
    assert (lab.state(dead), lab.state(alone)) == ("Cancelled", "Cancelling")
    assert look(lab, 80) == []


def test_stages_of_a_cancelled_experiment_are_cancelled_too(lab):
    """But none that has ended, or belongs to another experiment."""
    from prefect.states import Cancelling, Completed, Pending, Running

    parents = lab.run(Running(), Cancelling()), lab.run(Running())
    stages = [
        [lab.run(*states, above=parent) for states in ((), (Pending(),), (Running(),), (Running(), Completed()))]
        for parent in parents
    ]
    assert len(look(lab, 0)) == 3
    assert [lab.state(run) for run in stages[0]] == ["Cancelled", "Cancelling", "Cancelling", "Completed"]
    assert [lab.state(run) for run in stages[1]] == ["Scheduled", "Pending", "Running", "Completed"]
    assert look(lab, 0) == []


def test_silence_before_the_server_was_up_does_not_count(lab):
    from prefect.states import Running

    run = lab.run(Running())
    now = datetime.now(UTC) + timedelta(seconds=600)
    assert watcher.look(lab.client, now - timedelta(seconds=60), now) == []
    assert lab.state(run) == "Running"
    assert watcher.look(lab.client, now - timedelta(seconds=75), now)


def test_a_crashed_run_is_rescheduled_at_once_but_not_for_ever(lab, monkeypatch):
    from prefect.states import Crashed, Running

    run = lab.run(Running(), Crashed())
    assert len(look(lab, 0)) == 1
    assert lab.state(run) == "AwaitingRetry"
    monkeypatch.setattr(watcher, "ATTEMPTS", 2)
    for state in (Running(), Crashed()):
        lab.client.set_flow_run_state(run, state, force=True)
    assert look(lab, 0) == []
    assert lab.state(run) == "Crashed"
    again = lab.run(Running(), Crashed(), Running())
    (line,) = look(lab, 80)
    assert "for good, after 2 attempts" in line
    assert lab.state(again) == "Crashed"


def test_a_run_that_crashes_before_it_begins_is_given_up_but_a_pending_one_may_wait_for_ever(lab):
    from prefect.states import Crashed, Pending

    ends, waits = lab.run(), lab.run()
    for _ in range(watcher.ATTEMPTS):
        lab.client.set_flow_run_state(ends, Pending(), force=True)
        lab.client.set_flow_run_state(ends, Crashed(message="Process exited with status code: 1."), force=True)
        lab.client.set_flow_run_state(waits, Pending(), force=True)
        assert str(waits) in look(lab, watcher.SILENCE["PENDING"].total_seconds() + 1)[-1]
    assert (lab.state(ends), lab.state(waits)) == ("Crashed", "AwaitingRetry")
    runs = [lab.client.read_flow_run(run) for run in (ends, waits)]
    assert [run.run_count for run in runs] == [0, 0]


@pytest.mark.parametrize(("said", "seconds"), [(None, 110), ("900", 900)])
def test_a_cluster_may_let_runs_wait_longer_for_a_machine(said, seconds, lab, monkeypatch):
    from prefect.states import Pending

    monkeypatch.delenv(watcher.PENDING, raising=False)
    if said is not None:
        monkeypatch.setenv(watcher.PENDING, said)
    run = lab.run(Pending())
    assert look(lab, seconds - 10) == []
    assert {str(run) in line for line in look(lab, seconds + 10)} == {True}


@pytest.mark.parametrize("said", ["", "0", "15m", "1e3", "-5"])
def test_an_invalid_pending_time_is_refused_in_one_line(said):
    from commands import environment

    command = [sys.executable, "-m", "flows.stack.watcher"]
    run = subprocess.run(command, env=environment() | {watcher.PENDING: said}, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == f"error: {watcher.PENDING} = {said}: should be 1 to 999999 seconds; unset it for 110\n"


@pytest.mark.parametrize(("first", "ahead"), [(0, 600), (600, -600)])
def test_a_run_counts_as_alive_until_its_last_heartbeat_is_long_ago(first, ahead, lab):
    """Whatever the clocks of its worker and of its first worker show."""
    from prefect.states import Running

    run, other = lab.run(Running()), lab.run(Running())
    begun = max(lab.client.read_flow_run(one).state.timestamp for one in (run, other))
    lab.beat(run, first)
    last_heartbeat = lab.beat(run, ahead)
    assert last_heartbeat > begun
    late = watcher.SILENCE["RUNNING"] + (last_heartbeat - begun) / 2
    done = watcher.look(lab.client, AGO, begun + late)
    assert [str(other) in line for line in done] == [True, True]
    assert (lab.state(run), lab.state(other)) == ("Running", "AwaitingRetry")
    watcher.look(lab.client, AGO, last_heartbeat + late)
    assert lab.state(run) == "AwaitingRetry"


def test_old_crashes_runs_without_a_deployment_and_resumed_runs_are_left_alone(lab, monkeypatch):
    from prefect.states import Crashed, Pending, Running

    run, alone = lab.run(Running(), Crashed()), lab.run(Running(), Crashed(), deployed=False)
    assert look(lab, watcher.RECENT.total_seconds() + 1) == []
    assert [str(run) in line for line in look(lab, 0)] == [True]
    assert lab.state(alone) == "Crashed"
    begins = lab.run(Pending())

    def meanwhile(client, run, now):
        client.set_flow_run_state(begins, Running(), force=True)

    monkeypatch.setattr(watcher, "last_heartbeat", meanwhile)
    assert look(lab, watcher.SILENCE["PENDING"].total_seconds() + 1) == []
    assert lab.state(begins) == "Running"


# The watcher's loop; each look prints since when the server has been up.
LOOP = """
import sys
from flows.stack import watcher

watcher.LOOK_SECONDS = 0.02
watcher.look = lambda client, up_since, now: [up_since.isoformat()]
sys.exit(watcher.main())
"""


class Server(http.server.BaseHTTPRequestHandler):
    """A Prefect server as far as the watcher uses it: status, version and clock can be set."""

    moved, status, version = 0.0, 200, ""

    def do_GET(self):
        body = json.dumps(self.version if self.path.endswith("version") else "hello").encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + self.moved)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """The handler of a Prefect server, whose answers may be changed, and the environment that leads there."""
    import prefect
    from commands import environment

    handler = type("Changed", (Server,), {"version": prefect.__version__})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.environment = environment() | {"PREFECT_API_URL": f"http://127.0.0.1:{server.server_address[1]}/api"}
        yield handler
        server.shutdown()


def test_the_watcher_counts_from_the_servers_return_or_clock_jump_and_ends_on_sigterm(server):
    """Its clock jumps forward, as after the machine's sleep, and back."""
    command = [sys.executable, "-c", LOOP]
    process = subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True)
    try:
        before = [process.stdout.readline() for _ in range(3)]
        server.status, server.moved = 500, 10.0
        line = next(line for line in process.stdout if line not in before)
        server.status = 200
        after = [process.stdout.readline() for _ in range(3)]
        moved = []
        for hours in (1, -2):
            server.moved += hours * 3600
            lines = islice(process.stdout, 300)
            moved.append(next((line for line in lines if line not in (*after, *moved)), before[0]))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert line.startswith("the server does not answer: ")
    assert len(set(before)) == len(set(after)) == 1  # the time stays the same while the server answers
    first, back, woke, set_back = (datetime.fromisoformat(one.strip()) for one in (before[0], after[0], *moved))
    assert set_back < first < back < woke - timedelta(minutes=59)


TROUBLES = {
    "credentials": ({"status": 401}, {}, "the server rejects the credentials; set PREFECT_API_AUTH_STRING to"),
    "another version": ({"version": "2.20.9"}, {}, "the server runs Prefect 2.20.9, this machine 3."),
    "another server": ({"version": "welcome"}, {}, "no Prefect server answers there; give the address of one"),
    "no address": ({}, {"PREFECT_API_URL": "junk"}, "PREFECT_API_URL = junk: is not a URL; give a Prefect server's"),
    "none": ({}, {"PREFECT_API_URL": ""}, "PREFECT_API_URL = : is not a URL; give a Prefect server's"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_that_waiting_cannot_fix_is_one_line(trouble, server):
    """Shown by the watcher; workers check their server in the same way."""
    answers, settings, line = TROUBLES[trouble]
    for name, value in answers.items():
        setattr(server, name, value)
    settings = server.environment | {"PREFECT_API_AUTH_STRING": "me:hidden"} | settings
    command = [sys.executable, "-m", "flows.stack.watcher"]
    run = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
    assert run.stderr.startswith("error: PREFECT_API_URL = ")
    assert line in run.stderr
    assert "hidden" not in run.stderr


@pytest.mark.parametrize(
    ("seconds", "said"), [(600, "s behind that of Prefect's"), (-600, "s ahead of that of Prefect's")]
)
def test_a_worker_whose_clock_is_off_begins_nothing(seconds, said, server):
    server.moved = seconds
    command = [sys.executable, "-m", "flows.stack.worker", "--pool", "stages", "--limit", "1"]
    run = subprocess.run(command, env=server.environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
    assert said in run.stderr
    assert "set it, for example with timedatectl set-ntp true" in run.stderr
