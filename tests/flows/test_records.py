"""MLflow's server for a project's runs, on this machine only."""

import ipaddress
import os
import socket
import sqlite3
import sys
from contextlib import closing

import pytest
from ports import free_ports

from flows import records
from hiar.io.files import write_text
from hiar.tracking.records import view_paths
from hiar.tracking.spool import spool_folder


def test_mlflow_listens_on_loopback_and_reads_the_projects_database(tmp_path, monkeypatch):
    (port,) = free_ports(1)
    executed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", str(port)])
    monkeypatch.setattr(os, "execv", lambda program, command: executed.append((program, command)))
    records.main()
    ((program, command),) = executed
    assert program == command[0] == sys.executable
    given = dict(zip(command[4::2], command[5::2], strict=False))
    assert ipaddress.ip_address(given["--host"]).is_loopback
    assert given["--port"] == str(port)
    assert given["--backend-store-uri"] == "sqlite:///mlflow.db"


TABLES = """
CREATE TABLE experiments (experiment_id INTEGER, name TEXT, artifact_location TEXT);
CREATE TABLE experiment_tags (key TEXT, value TEXT, experiment_id INTEGER);
CREATE TABLE runs (artifact_uri TEXT);
INSERT INTO experiments VALUES (1, 'hiar', 'file:///old/mlruns'), (2, 'hiar/given', 'file:///older/mlruns');
INSERT INTO experiment_tags VALUES ('mlflow.sharedViewState.contenders', '{}', 2), ('other', '{}', 1);
INSERT INTO runs VALUES ('file:///old/mlruns/1/abc'), ('file:///older/mlruns/2/def');
"""


def test_a_database_without_tables_lists_no_contenders(tmp_path):
    """As of an MLflow server that has just made the file."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE other (key TEXT)")
    assert view_paths(tmp_path) == {}


def test_records_of_a_moved_project_are_found_and_waiting_ones_are_sent(tmp_path, monkeypatch, capsys):
    (port,) = free_ports(1)
    started, executed = [], []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", str(port)])
    monkeypatch.setattr(records, "start_sender", lambda folder: started.append(folder.resolve()))
    monkeypatch.setattr(os, "execv", lambda *command: executed.append(command))
    with sqlite3.connect("mlflow.db") as database:
        database.executescript(TABLES)
    records.main()
    here = (tmp_path / "mlruns").as_uri()
    assert set(database.execute("SELECT artifact_location FROM experiments")) == {(here,)}
    assert set(database.execute("SELECT artifact_uri FROM runs")) == {(f"{here}/1/abc",), (f"{here}/2/def",)}
    database.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"contenders of hiar/given: http://127.0.0.1:{port}/#/experiments/2/runs?")
    assert started == []
    write_text(spool_folder(tmp_path) / "1.jsonl", "")
    records.main()
    assert started == [spool_folder(tmp_path)]
    assert len(executed) == 2


def test_a_port_in_use_and_a_damaged_database_end_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (free,) = free_ports(1)
    write_text(tmp_path / "mlflow.db", "no database")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for number, line in ((port, f"PORT = {port}: address already in use; choose"), (free, "mlflow.db: cannot be")):
            monkeypatch.setattr(sys, "argv", ["records", "--port", str(number)])
            with pytest.raises(SystemExit) as end:
                records.main()
            assert end.value.code == 2
            assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_locked_database_is_not_reported_as_damaged(tmp_path, monkeypatch, capsys):
    (port,) = free_ports(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", str(port)])
    with closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.executescript(TABLES)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SystemExit) as end:
            records.main()
    assert end.value.code == 2
    message = "error: mlflow.db: cannot be read (database is locked); wait for the program that writes to it\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("text", ["0", "65536", "\u0661"])
def test_an_invalid_port_is_refused_before_anything_starts(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", text])
    with pytest.raises(SystemExit) as end:
        records.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: PORT = {text}: is not a port; give 1 to 65535")
