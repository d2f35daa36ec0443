"""The stack's ports and keys: what is wrong is one line before anything starts."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import environment

from flows.stack.settings import check_ports, open_stack, read_ports
from hiar.errors import UserError


@pytest.mark.parametrize("value", ["0", "65536", "http", "-1", "8e3", "١"])
def test_what_is_no_port_is_refused(value):
    with pytest.raises(UserError, match=r"HIAR_S3_PORT = .*: is no port; .*make stack HIAR_S3_PORT=8333"):
        read_ports({"HIAR_S3_PORT": value})


def test_two_servers_at_one_port_are_refused():
    with pytest.raises(UserError, match="HIAR_B_PORT = 5000: meets HIAR_A_PORT at 5000"):
        check_ports({"HIAR_A_PORT": 5000, "HIAR_B_PORT": 5000})


def test_a_taken_port_ends_the_start_with_one_line_and_leaves_no_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "flows.stack", "up"],
            cwd=tmp_path,
            env=environment() | {"HIAR_PREFECT_PORT": str(port)},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"error: HIAR_PREFECT_PORT = {port}: address already in use; choose another, as in")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / ".hiar" / "stack" / "pid").exists()


@pytest.fixture
def short():
    """A folder whose name leaves room for a Unix socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_keys_are_drawn_once_and_their_owner_alone_reads_them(short):
    first = open_stack(short)
    assert open_stack(short).keys == first.keys
    assert open_stack(short / "b").keys["AWS_SECRET_ACCESS_KEY"] != first.keys["AWS_SECRET_ACCESS_KEY"]
    for name in ("secrets.env", "s3.json"):
        assert stat.S_IMODE((first.folder / name).stat().st_mode) == 0o600
    assert first.keys["AWS_SECRET_ACCESS_KEY"] in (first.folder / "s3.json").read_text()


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(UserError, match="too long a name for a Unix socket"):
        open_stack(tmp_path / os.fspath("x" * 90))
