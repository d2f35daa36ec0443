"""`hiar live` as a command, before anything is served: its lead, and whether a browser is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from typer.testing import CliRunner

from hiar.cli.app import app


@pytest.mark.parametrize("lead", ["0.09", "20.1", "nan", "inf", "-1"])
def test_an_invalid_lead_is_refused(lead: str, tmp_path: Path) -> None:
    def error_of(lead: str) -> str:
        return str(CliRunner().invoke(app, ["live", "--checkpoint", str(tmp_path), "--lead", lead]).exception)

    assert error_of(lead) == f"--lead = {float(lead):g}: should be 0.1 to 20 seconds"
    assert "name a checkpoint folder" in error_of("0.1")  # a valid lead: the next error is reported


@pytest.mark.parametrize(
    ("requested", "screen", "opened"),
    [(True, "DISPLAY", True), (True, "WAYLAND_DISPLAY", True), (True, "none", False), (False, "DISPLAY", False)],
)
@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="there is always a screen")
def test_a_browser_is_opened_if_requested_and_there_is_a_screen(
    requested: bool, screen: str, opened: bool, tmp_path: Path
) -> None:
    """A command in place of the browser records the address."""
    note, browser = tmp_path / "note", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {note}\n')
    browser.chmod(0o755)
    address = "http://127.0.0.1:1/"
    code = f"from hiar.cli.live import _announce; _announce({requested}, '{address}')"
    own = {name: value for name, value in environment().items() if not name.endswith("DISPLAY")}
    own |= {screen: ":0", "BROWSER": f"{browser} %s"}
    run = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    assert run.stdout == f"live: {address} (Ctrl-C ends it)\n"
    assert (note.read_text() if note.exists() else None) == (address if opened else None)
