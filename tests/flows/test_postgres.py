"""PostgreSQL's databases are made once and completely; stand-ins for its programs record their input."""

import os
import pwd
import stat
import sys

import pytest

from flows.stack import postgres
from flows.stack.postgres import make_cluster
from hiar.errors import RunFailed, UserError

PASSWORD = "a word of sixteen letters"
# Each records its input in the given folder: the password file that it is to read, or its standard input.
INITDB = """\
import pathlib, sys
options = dict(one.partition("=")[::2] for one in sys.argv[3:])
folder = pathlib.Path(sys.argv[2])
(folder / "begun").touch()
(folder / "auth").write_text(options["--auth"])
(folder / "password").write_text(pathlib.Path(options["--pwfile"]).read_text())
(folder / "file").write_text(options["--pwfile"])
"""
SERVER = """\
import pathlib, sys
if pathlib.Path("broken").exists():
    sys.exit("postgres: one\\npostgres: out of luck")
with (pathlib.Path(sys.argv[3]) / "asked").open("a") as asked:
    asked.write(sys.stdin.read())
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only folder on PATH, with the stand-ins; the user is not root."""
    place = tmp_path / "programs"
    place.mkdir()
    for name, text in (("initdb", INITDB), ("postgres", SERVER.replace('"broken"', repr(str(place / "broken"))))):
        (place / name).write_text(f"#!{sys.executable}\n{text}")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(postgres, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return place


def test_databases_are_made_once_and_the_password_file_is_removed(programs, tmp_path):
    folder = tmp_path / "data"
    before = os.umask(0)
    try:
        make_cluster(folder, PASSWORD)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "password").read_text() == PASSWORD
    assert not os.path.exists((folder / "file").read_text())
    assert (folder / "auth").read_text() != "trust"
    statements = "CREATE DATABASE prefect;\nCREATE DATABASE mlflow;\n"
    assert (folder / "asked").read_text() == statements
    (folder / "begun").unlink()
    make_cluster(folder, PASSWORD)
    assert not (folder / "begun").exists()
    assert (folder / "asked").read_text() == statements


def test_a_failed_setup_is_reported_and_starts_over_next_time(programs, tmp_path):
    folder = tmp_path / "data"
    (programs / "broken").touch()
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"^postgres: postgres: out of luck$"):
            make_cluster(folder, PASSWORD)
        assert not folder.exists()
    (programs / "broken").unlink()
    make_cluster(folder, PASSWORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "programs"]


def test_what_is_not_installed_is_named(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "find_spec", lambda name: None if name == "psycopg2" else name)
    with pytest.raises(UserError, match="psycopg2 is not installed"):
        make_cluster(tmp_path / "data", PASSWORD)
    (programs / "initdb").unlink()
    with pytest.raises(UserError, match="initdb is not in PATH"):
        make_cluster(tmp_path / "data", PASSWORD)
    assert not (tmp_path / "data").exists()


def test_the_error_names_the_folder_that_user_postgres_may_not_enter(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", os.getuid)
    if os.getuid() != 0:
        pytest.skip("only root may become user postgres")
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("there is no user postgres here")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    closed = tmp_path / "closed"
    (closed / "within").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o711)
    closed.chmod(0o700)
    for folder in (closed / "within" / "data", closed / "data"):
        with pytest.raises(UserError, match=rf"user postgres, who cannot enter {closed}; chmod o\+x {closed}, or"):
            make_cluster(folder, PASSWORD)
    assert [path for path in closed.rglob("*") if path.name != "within"] == []
