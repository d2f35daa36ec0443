"""Troubles outside the stages: one line and exit code 2 before anything runs, or a run that works all the same."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

DEAD = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), DEAD) | {
    "ALL_PROXY": "socks5://x:9"
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """A user without any Prefect settings."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


def hiar(folder, *arguments, **settings):
    command = [sys.executable, "-m", "hiar", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)


def error_line(folder, *arguments, **settings):
    """Run `hiar`, which should fail with exit code 2 and one line; return that line without `error: `."""
    run = hiar(folder, *arguments, **settings)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stdout == ""
    line, *more = run.stderr.splitlines()
    assert not more, run.stderr
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


OLD = {"/old/api/flows/filter": b"[]", "/old/api/admin/version": b'"2.20.9"'}


class Foreign(http.server.BaseHTTPRequestHandler):
    """A server that is not Prefect's; below /old, one of Prefect 2; below /closed, one that knows nobody."""

    def do_POST(self):
        old = 404 if self.path.startswith("/old/") and self.path not in OLD else 200
        self.send_response(401 if self.path.startswith("/closed/") else old)
        self.end_headers()
        self.wfile.write(OLD.get(self.path, b"<html>welcome</html>"))

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def foreign_server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_without_a_usable_prefect_server_is_refused(project, foreign_server):
    line = error_line(project.folder, "run", PREFECT_API_URL=f"{DEAD}/api", **PROXIES)
    assert line.startswith(f"PREFECT_API_URL = {DEAD}/api: no Prefect server answers there (")
    assert line.endswith("or unset PREFECT_API_URL for a temporary one")
    line = error_line(project.folder, "run", PREFECT_API_URL=f"http://me:secret@{foreign_server}/api")
    assert line.startswith(f"PREFECT_API_URL = http://{foreign_server}/api: no Prefect server answers there (")
    assert "secret" not in line
    line = error_line(project.folder, "run", PREFECT_API_URL=f"http://{foreign_server}/old/api")
    assert "Found incompatible versions: client: 3." in line
    assert "server: 2.20.9" in line
    assert error_line(project.folder, "run", PREFECT_API_URL="junk").startswith("PREFECT_API_URL = junk: no Prefect")
    own = project.folder / "of-prefect"  # where `prefect config set` stores settings
    own.mkdir()
    (own / "profiles.toml").write_text(f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{DEAD}/api"\n')
    line = error_line(project.folder, "run", PREFECT_HOME=str(own), **PROXIES)
    assert line.startswith(f"PREFECT_API_URL = {DEAD}/api: no Prefect server answers there (")
    assert project.events() == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "no Prefect server answers there ("),
        ("/old", "no Prefect server answers there ("),
        ("/closed", "the server rejects the credentials; set PREFECT_API_AUTH_STRING to its"),
    ],
)
def test_deploying_without_a_prefect_server_is_one_line(place, said, foreign_server):
    """Prefect's own command would print a traceback."""
    url = f"http://{foreign_server}{place}/api"
    command = [sys.executable, "-m", "flows.server"]
    run = subprocess.run(command, env=os.environ | {"PREFECT_API_URL": url}, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"error: PREFECT_API_URL = {url}: {said}")


def test_a_temporary_server_that_cannot_start_is_one_line(project):
    records = project.folder / ".prefect"
    records.write_text("of somebody")
    assert error_line(project.folder, "run").startswith(f"{records}: file exists; a file has this name")
    records.unlink()
    records.mkdir()
    (records / "prefect.db").write_text("no database")
    line = error_line(project.folder, "run")
    assert line.startswith(f"{records}/server.log: Prefect's temporary server does not start (")
    assert "file is not a database" in line
    assert project.events() == []


@pytest.mark.parametrize("command", [["hiar", "run"], ["flows.stack", "up"]])
def test_a_machine_whose_loopback_is_down_gets_the_fix(command, project, short_folder):
    """As in a new network namespace."""
    apart = ["unshare", "--user", "--map-current-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("there are no name spaces of networks here")
    folder = project.folder if command[0] == "hiar" else short_folder
    run = subprocess.run([*apart, sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert (
        run.stderr
        == "error: 127.0.0.1: network is unreachable: this machine cannot reach itself; run ip link set lo up\n"
    )


# A sitecustomize with which the first servers end as if their port had been taken.
TAKEN = """
import os
import sys
from pathlib import Path

if "uvicorn" in sys.orig_argv:
    begun = Path({begun!r})
    begun.write_text(begun.read_text() + "begun\\n" if begun.exists() else "begun\\n")
    if len(begun.read_text().splitlines()) <= {times}:
        os._exit(3)
"""
REACH = """
from flows.processes import stage_environment
from flows.server import reach_server
from hiar.errors import UserError

try:
    reach_server()
except UserError as error:
    print(error)
assert stage_environment()["NO_PROXY"] == "mine.example"  # whatever the flow itself has
"""


@pytest.mark.parametrize(("times", "said"), [(1, ""), (9, "server.log: Prefect's temporary server does not start (")])
def test_a_temporary_server_whose_port_is_taken_meanwhile_is_started_once_more(times, said, tmp_path):
    begun = tmp_path / "begun"
    (tmp_path / "sitecustomize.py").write_text(TAKEN.format(begun=str(begun), times=times))
    settings = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
        "NO_PROXY": "mine.example",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), *sys.path))),
    }
    run = subprocess.run([sys.executable, "-c", REACH], env=os.environ | settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert said in run.stdout
    assert bool(run.stdout) == bool(said)
    assert begun.read_text().splitlines() == ["begun"] * 2


@pytest.mark.long
def test_a_run_works_behind_dead_proxies_in_an_odd_path_and_refuses_a_second_run(project, tmp_path):
    """Three in one test, since a flow takes long."""
    folder = tmp_path / "below" / "a b?c#d%20e"
    shutil.copytree(project.folder, folder, ignore=lambda *_: {"below"})
    (folder / "orders").mkdir()
    (folder / "orders" / "codec-0").write_text("touch started\nwait go\n")
    command = [sys.executable, "-m", "hiar", "run"]
    environment = os.environ | PROXIES
    with (tmp_path / "said").open("w") as log:
        first = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not (folder / "started").exists():
            assert first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.02)
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
        for options in ([], ["--dry-run"], ["--force"]):
            assert error_line(folder, "run", *options) == (
                "a b?c#d%20e: another `hiar run` is running here; wait until it ends, or stop it"
            )
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == before
    finally:
        (folder / "go").touch()
        code = first.wait()
    assert code == 0, (tmp_path / "said").read_text()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing is written outside the project
    assert (folder / ".prefect" / "prefect.db").exists()


def test_a_project_runs_without_git(project):
    """As unpacked from an archive; git is used again once there is a repository."""
    config = project.folder / ".dvc" / "config"
    config.write_text("[core]\n    analytics = false\n")
    local = project.folder / ".dvc" / "config.local"
    assert "4 stage(s) would run" in hiar(project.folder, "run", "--dry-run").stdout
    assert "no_scm = true" in local.read_text()
    project.dvc("repro")
    assert "everything is up to date" in hiar(project.folder, "run").stdout
    subprocess.run(["git", "init", "--quiet"], cwd=project.folder, check=True)
    assert "0 stage(s) would run" in hiar(project.folder, "run", "--dry-run").stdout
    assert not local.exists()
    shutil.rmtree(project.folder / ".git")
    local.write_text("[core]\n    autostage = false\n")  # of the user's
    assert "0 stage(s) would run" in hiar(project.folder, "run", "--dry-run").stdout
    assert "autostage = false" in local.read_text()


def test_a_project_whose_code_differs_from_the_running_code_is_refused(project):
    """A copy of the project, with the .venv of the one it was copied from."""
    root = Path(__file__).parents[2]
    for package in ("hiar", "flows"):
        shutil.copytree(root / package, project.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    elsewhere = {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    assert "would run" in hiar(project.folder, "run", "--dry-run", **elsewhere).stdout
    with (project.folder / "hiar" / "noise.py").open("a") as file:
        file.write("# changed here\n")
    line = error_line(project.folder, "run", "--dry-run", **elsewhere)
    assert line.startswith(f"{project.folder}/hiar: differs from {root}/hiar, whose code this `hiar` runs; install the")
