"""A clone of this commit with a stack of its own, whose parts can be killed while the experiment `smoke` runs."""

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

# What one finds of each part in its command line, one of several; the outermost process that has it is killed.
PARTS = {
    "stage": ("/hiar stage ",),
    "flow": ("-m prefect.engine",),
    "worker": ("-m flows.stack.worker --pool stages",),
    "prefect": ("-m prefect server start",),
    "mlflow": ("-m mlflow server",),
    "s3": ("weed server",),
    # SQLite is a part of the servers, each of which writes a database of its own: both die at once.
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
    """The hash of everything that the stages of the experiment made, but of what tells of the run itself."""
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
        """What a command of its Python says, and how it ends."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.settings | self.keys(),
            capture_output=True,
            text=True,
        )

    def share(self):
        """Have the project's repository name the remote, as docs/operations.md says."""
        server = f"http://127.0.0.1:{self.settings['HIAR_S3_PORT']}"
        self.command("-m", "dvc", "remote", "add", "--default", "store", REMOTE)
        self.command("-m", "dvc", "remote", "modify", "store", "endpointurl", server)
        who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run(["git", *who, "commit", "--quiet", "--all", "--message", "remote"], cwd=self.folder, check=True)

    def start(self):
        """Seconds until the stack is healthy."""
        began = time.monotonic()
        self.command("-m", "flows.stack", "up")
        seconds = time.monotonic() - began
        if not self.get("/deployments/name/experiment/any"):
            self.command("-m", "prefect", "--no-prompt", "deploy", "--all")
        return seconds

    def stop(self):
        self.command("-m", "flows.stack", "down")

    def undisturbed(self):
        """The hashes of all outputs, and the seconds it took."""
        began = time.monotonic()
        state = self.end_of(self.fire())
        assert state == "COMPLETED", state
        return self.outputs(), time.monotonic() - began

    def fire(self, wanted="experiment/any", **parameters):
        """A new run of a deployment, by default of the experiment, of which nothing is there yet; its id."""
        for path in ("runs", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.folder / path, ignore_errors=True)
        for page in self._pages("hiar/dvc"):
            names = [{"Key": one["Key"]} for one in page.get("Contents", [])]
            if names:
                self._store().delete_objects(Bucket="hiar", Delete={"Objects": names})
        points.forget(self.mlflow)
        deployment = self.get(f"/deployments/name/{wanted}")
        asked = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return self.send(f"/deployments/{deployment['id']}/create_flow_run", asked)["id"]

    def wait_for_work(self, part, moment):
        """Wait for a moment, and then for the part to be there: a stage is not at every moment."""
        while time.monotonic() < moment or not self.processes(part):
            time.sleep(0.05)

    def kill(self, part):
        """SIGKILL; what of it is alive when a stage has had its time to leave a checkpoint."""
        gone = []
        while not gone:  # one that has come to its end by itself meanwhile is none: the next one is killed
            found = self.processes(part)
            for victim in found if part in WHOLE else found[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    below = victim.children(recursive=True)
                    victim.kill()
                    gone += [victim, *below]
        time.sleep(10)
        # The runs of a killed worker may go on without it; whoever waits for them is told how they end.
        _, alive = psutil.wait_procs(gone if part != "worker" else [], timeout=LEAVE - 10)
        left = [process.pid for process in alive]
        if part in ("supervisor", "all"):
            left = left or [process.pid for process in self.processes("all")]
            self.start()
        return left

    def running_again(self, run, part, since):
        """Seconds until a stage is at work again, or the run has ended."""
        while not self.processes("stage"):
            if self._ended(run):
                break
            assert time.monotonic() < since + PATIENCE
            time.sleep(0.1)
        return time.monotonic() - since

    def end_of(self, run):
        """The state in which a run ends for good."""
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
        """The address of its control."""
        return f"unix://{self.folder / '.hiar' / 'stack' / 'supervisor.sock'}"

    def stored(self, place):
        """How many objects there are below a place BUCKET/PREFIX of its S3 store."""
        return sum(page["KeyCount"] for page in self._pages(place))

    def store_amiss(self):
        """What `hiar storage verify` finds after the next run, which pushes what a store that was away has missed."""
        self.command("-m", "hiar", "run", "smoke")
        verified = self.ask("-m", "hiar", "storage", "verify")
        return "" if verified.returncode == 0 else verified.stdout + verified.stderr

    def points_amiss(self):
        """What MLflow lacks of the curves of the experiment, or has twice."""
        return points.amiss(self.mlflow, self.folder / "runs" / "smoke")

    def versions(self):
        """How many students its registry has."""
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
        """Of its S3 store, once it was started."""
        secrets = self.folder / ".hiar" / "stack" / "secrets.env"
        lines = secrets.read_text().splitlines() if secrets.exists() else []
        return dict(line.split("=", 1) for line in lines if line.startswith("AWS_"))

    def processes(self, part):
        """The processes of a part, or all that work for this lab's stack, outermost first."""
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
        if part == "flow":  # the one that runs a stage
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
        """What the server answers, which may be busy for a while after what was killed, as its own clients allow."""
        end = time.monotonic() + 120
        while True:
            answer = httpx.post(self.api + path, json=data, timeout=60, trust_env=False)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > end:
                answer.raise_for_status()
                return answer.json()
            time.sleep(1)
