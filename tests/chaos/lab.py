"""A clone of this commit with its own stack, whose parts can be killed while the experiment `smoke` runs."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import yaml

from hiar.tracking.client import connect
from tests.chaos import points
from tests.commands import ROOT, environment
from tests.ports import free_ports

# What the command line of each part's process contains; the outermost process that has one of these is killed.
PARTS = {
    "stage": ("/hiar stage ",),
    "flow": ("-m prefect.engine",),
    "worker": ("-m flows.stack.worker --pool stages",),
    "prefect": ("-m prefect server start",),
    "mlflow": ("-m mlflow server",),
    "s3": ("weed server",),
    # SQLite runs inside the servers, each with its own database: both are killed at once.
    "database": ("-m prefect server start", "-m mlflow server"),
    "supervisor": ("-m flows.stack.supervisor",),
    "all": ("",),
}
POSTGRES = ("postgres -D ",)
DATABASES = ("sqlite", "postgresql")
WHOLE = ("all", "database")  # parts of which every process is killed
REMOTE = "s3://hiar/dvc"
PATIENCE = 1800
LEAVE = 30  # seconds: what docs/operations.md promises


def outputs_of(folder):
    """The hash of everything that the experiment's stages made, except what describes the run itself."""
    lock = yaml.safe_load((folder / "runs" / "smoke" / "dvc.lock").read_text())
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    return {out["path"]: out["md5"] for out in outs if out["path"].startswith(("artifacts", "metrics"))}


class Lab:
    def __init__(self, folder: Path, database: str = "sqlite"):
        self.folder = folder
        self.parts = PARTS | ({"database": POSTGRES} if database == "postgresql" else {})
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True)
        names = ("HIAR_PREFECT_PORT", "HIAR_MLFLOW_PORT", "HIAR_POSTGRES_PORT")
        s3 = ("HIAR_S3_PORT", "HIAR_S3_MASTER_PORT", "HIAR_S3_VOLUME_PORT", "HIAR_S3_FILER_PORT")
        ports = {name: str(port) for name, port in zip((*s3, *names), free_ports(7), strict=True)}
        self.api = f"http://127.0.0.1:{ports['HIAR_PREFECT_PORT']}/api"
        self.mlflow = f"http://127.0.0.1:{ports['HIAR_MLFLOW_PORT']}"
        self.settings = environment() | ports | {"PYTHONPATH": os.fspath(folder), "PREFECT_API_URL": self.api}
        self.settings |= {"PREFECT_HOME": os.fspath(folder / ".hiar" / "home"), "HIAR_DEVICES": "cpu"}
        self.settings["HIAR_STACK_DATABASE"] = database
        self.settings["PATH"] = os.pathsep.join((os.fspath(Path(sys.executable).parent), os.environ["PATH"]))

    def command(self, *arguments):
        run = self.ask(*arguments)
        assert run.returncode == 0, run.stdout + run.stderr

    def ask(self, *arguments):
        """Run a command with the lab's Python; returns the completed process."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.settings | self.keys(),
            capture_output=True,
            text=True,
        )

    def share(self):
        """Name the remote in the project's repository, as docs/operations.md says."""
        server = f"http://127.0.0.1:{self.settings['HIAR_S3_PORT']}"
        self.command("-m", "dvc", "remote", "add", "--default", "store", REMOTE)
        self.command("-m", "dvc", "remote", "modify", "store", "endpointurl", server)
        who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run(["git", *who, "commit", "--quiet", "--all", "--message", "remote"], cwd=self.folder, check=True)

    def start(self):
        """Start the stack; returns the seconds until it is healthy."""
        began = time.monotonic()
        self.command("-m", "flows.stack", "up")
        seconds = time.monotonic() - began
        if not self.get("/deployments/name/experiment/any"):
            self.command("-m", "prefect", "--no-prompt", "deploy", "--all")
        return seconds

    def stop(self):
        self.command("-m", "flows.stack", "down")

    def undisturbed(self):
        """Run the experiment undisturbed; returns the hashes of all outputs, and the seconds it took."""
        began = time.monotonic()
        state = self.end_of(self.fire())
        assert state == "COMPLETED", state
        return self.outputs(), time.monotonic() - began

    def fire(self, wanted="experiment/any", **parameters):
        """Delete all results and start a run of a deployment, by default the experiment's; returns its id."""
        for path in ("runs", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.folder / path, ignore_errors=True)
        for page in self._pages("hiar/dvc"):
            names = [{"Key": one["Key"]} for one in page.get("Contents", [])]
            if names:
                self._store().delete_objects(Bucket="hiar", Delete={"Objects": names})
        points.forget(self.mlflow)
        deployment = self.get(f"/deployments/name/{wanted}")
        request = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return self.send(f"/deployments/{deployment['id']}/create_flow_run", request)["id"]

    def wait_for_work(self, part, moment):
        """Wait until ``moment``, and then until the part is running: a stage is not always."""
        while time.monotonic() < moment or not self.processes(part):
            time.sleep(0.05)

    def kill(self, part):
        """SIGKILL a part; returns its processes that outlive a stage's time to save a checkpoint."""
        gone = []
        while not gone:  # a process that has just ended by itself does not count: kill the next one
            found = self.processes(part)
            for victim in found if part in WHOLE else found[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    below = victim.children(recursive=True)
                    victim.kill()
                    gone += [victim, *below]
        time.sleep(10)
        # The runs of a killed worker may go on without it; their states are reported to those who wait for them.
        _, alive = psutil.wait_procs(gone if part != "worker" else [], timeout=LEAVE - 10)
        left = [process.pid for process in alive]
        if part in ("supervisor", "all"):
            left = left or [process.pid for process in self.processes("all")]
            self.start()
        return left

    def running_again(self, run, part, since):
        """Wait until a stage is running again or the run has ended; returns the seconds since ``since``."""
        while not self.processes("stage"):
            if self._ended(run):
                break
            assert time.monotonic() < since + PATIENCE
            time.sleep(0.1)
        return time.monotonic() - since

    def end_of(self, run):
        """Wait for a run's final state; returns its name."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if state := self._ended(run):
                return state
            time.sleep(0.5)
        return "NEVER"

    def outputs(self):
        return outputs_of(self.folder)

    @property
    def supervisor(self):
        """The address of the supervisor's control socket."""
        return f"unix://{self.folder / '.hiar' / 'stack' / 'supervisor.sock'}"

    def stored(self, place):
        """The number of objects below BUCKET/PREFIX in the lab's S3 store."""
        return sum(page["KeyCount"] for page in self._pages(place))

    def store_amiss(self):
        """What `hiar storage verify` finds after another run, which pushes what the store missed while it was down."""
        self.command("-m", "hiar", "run", "smoke")
        verified = self.ask("-m", "hiar", "storage", "verify")
        return "" if verified.returncode == 0 else verified.stdout + verified.stderr

    def points_amiss(self):
        """The points of the experiment's curves that MLflow lacks or has twice."""
        return points.amiss(self.mlflow, self.folder / "runs" / "smoke")

    def versions(self):
        """The number of students in MLflow's registry."""
        return len(connect(self.mlflow).search_model_versions())

    def _pages(self, place):
        bucket, prefix = place.split("/", 1)
        return self._store().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)

    def _store(self):
        import boto3

        names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        keys = {name: self.keys()[key] for name, key in names.items()}
        url = f"http://127.0.0.1:{self.settings['HIAR_S3_PORT']}"
        return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)

    def keys(self):
        """The keys of the S3 store, once it has been started."""
        secrets = self.folder / ".hiar" / "stack" / "secrets.env"
        lines = secrets.read_text().splitlines() if secrets.exists() else []
        return dict(line.split("=", 1) for line in lines if line.startswith("AWS_"))

    def processes(self, part):
        """The processes of a part, or all processes of this lab's stack, outermost first."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HIAR_PROJECT") == os.fspath(self.folder) and process.pid != os.getpid():
                    line = " ".join(process.cmdline())
                    has = any(words in line for words in self.parts[part])
                    if has and not (part != "all" and line.startswith(("unshare", "/bin/sh", "sh "))):
                        found.append(process)
            except psutil.Error:
                continue
        if part == "flow":  # the process that runs a stage
            found = [flow for flow in found if any("hiar stage" in " ".join(c.cmdline()) for c in flow.children(True))]
        return sorted(found, key=lambda process: process.create_time())

    def _ended(self, run):
        found = self.get(f"/flow_runs/{run}")
        final = found and found["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED")
        return found["state"]["type"] if final else None

    def get(self, path):
        try:
            answer = httpx.get(self.api + path, timeout=10, trust_env=False)
            return answer.json() if answer.is_success else None
        except httpx.HTTPError:
            return None

    def send(self, path, data):
        """The server's answer; retried as by its own clients, since it may be busy for a while after a kill."""
        end = time.monotonic() + 120
        while True:
            answer = httpx.post(self.api + path, json=data, timeout=60, trust_env=False)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > end:
                answer.raise_for_status()
                return answer.json()
            time.sleep(1)
