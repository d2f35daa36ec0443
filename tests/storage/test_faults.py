"""A store behind a failing network: failures are reported, commands can be repeated, and no broken data is accepted."""

import re
import shutil
import sys

import pytest
from storage.conftest import make_bucket
from storage.faults import KINDS, Faults

from hiar.storage.store import Store
from hiar.storage.upload import upload

pytestmark = pytest.mark.long

ATTEMPTS = 20
PUSH = (sys.executable, "-m", "flows.remote", "push")
FETCH = (sys.executable, "-m", "flows.remote", "reproduce", "make")


@pytest.fixture
def faults(server, request):
    proxy = Faults(int(server.rsplit(":", 1)[1]), **getattr(request, "param", {}))
    yield proxy
    proxy.close()


@pytest.fixture
def lab_behind_faults(lab, client, faults, tmp_path):
    """The lab's project with another bucket, which it reaches through the proxy; and direct access to that bucket."""
    bucket = make_bucket(client, re.sub(r"[^a-z0-9]+", "-", tmp_path.name.lower()).strip("-"))
    folder = tmp_path / "project"
    shutil.copytree(lab.folder, folder, symlinks=True)
    config = folder / ".dvc" / "config"
    direct = config.read_text().replace(f"s3://{lab.bucket}/hiar", f"s3://{bucket}/hiar")
    server = re.search(r"endpointurl = (\S+)", direct)[1]
    config.write_text(direct.replace(server, faults.url))
    return type(lab)(folder, bucket, lab.environment), direct


def repeat(lab, command):
    """Repeat a command until it succeeds, as later runs would; returns how often it failed."""
    for attempt in range(ATTEMPTS):
        done = lab.attempt(*command)
        if done.returncode == 0 and "remote 'store': " not in done.stdout:
            return attempt
        assert re.search(r"^remote 'store': .*; going on without it, the next run pushes", done.stdout, re.MULTILINE)
        assert "Traceback" not in done.stdout + done.stderr
    raise AssertionError(f"{command} did not go well in {ATTEMPTS} attempts: {done.stdout}")


@pytest.mark.parametrize(
    "faults", [pytest.param({"kinds": (kind,), "share": 0.4}, id=kind) for kind in KINDS] + [{}], indirect=True
)
def test_pushed_and_fetched_data_are_complete_despite_faults(lab_behind_faults, faults):
    lab, direct = lab_behind_faults
    repeat(lab, PUSH)
    assert faults.done
    config = lab.folder / ".dvc" / "config"
    faulty = config.read_text()
    config.write_text(direct)
    assert "35 objects, 0 damaged" in lab.storage("verify")
    config.write_text(faulty)
    made = contents(lab.folder)
    for name in ("artifacts", "metrics", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(lab.folder / name)
    lab.attempt(*FETCH)
    assert contents(lab.folder) == made
    lab.command(sys.executable, "-m", "dvc", "status", "--quiet")


def contents(folder):
    files = [path for name in ("artifacts", "metrics") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_full_store_keeps_what_it_has_and_gets_the_rest_later(lab_behind_faults, faults):
    lab, _ = lab_behind_faults
    faults.share, faults.full = 0.0, True
    output = lab.command(*PUSH, code=1)
    assert re.search(
        r"^remote 'store': .*; going on without it, the next run pushes what is missing", output, re.MULTILINE
    )
    assert faults.done["full"]
    faults.full = False
    assert repeat(lab, PUSH) == 0
    assert "35 objects, 0 damaged" in lab.storage("verify")


def test_a_multipart_upload_survives_faults(faults, bucket, client, environment, tmp_path):
    import boto3
    from botocore.config import Config

    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (12 << 12))
    through = boto3.client(
        "s3",
        endpoint_url=faults.url,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="x",
        config=Config(retries={"max_attempts": 10, "mode": "standard"}),
    )
    assert upload(Store(through, bucket, "faults/"), path, "large", "application/x-test", part=5 << 20)
    assert client.get_object(Bucket=bucket, Key="faults/large")["Body"].read() == path.read_bytes()
    assert faults.done
