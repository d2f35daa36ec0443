"""MLflow's pages on a project's runs: for this machine alone."""

import ipaddress
import os
import sys

import pytest
from ports import free_ports

from flows import records


def test_pages_are_of_this_machine_and_of_the_project_s_own_database(tmp_path, monkeypatch):
    (port,) = free_ports(1)
    become = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", str(port)])
    monkeypatch.setattr(os, "execv", lambda program, command: become.append((program, command)))
    records.main()
    ((program, command),) = become
    assert program == command[0] == sys.executable
    given = dict(zip(command[4::2], command[5::2], strict=False))
    assert ipaddress.ip_address(given["--host"]).is_loopback
    assert given["--port"] == str(port)
    assert given["--backend-store-uri"] == "sqlite:///mlflow.db"


@pytest.mark.parametrize("text", ["0", "65536", "\u0661"])
def test_what_is_no_port_ends_before_anything_starts(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["records", "--port", text])
    with pytest.raises(SystemExit) as end:
        records.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: PORT = {text}: is no port; give one of 1 to 65535")
