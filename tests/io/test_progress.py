"""Progress in a log: lines instead of a bar, and each count once."""

import io
import re
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from hiar.io import progress
from hiar.io.progress import Progress


@pytest.fixture
def eager(monkeypatch):
    """Every count gets a line."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


def lines(capsys):
    return [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]


def test_the_last_count_is_printed_once(eager, capsys):
    with Progress("work", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert lines(capsys) == ["work: 1/3", "work: 2/3", "work: 3/3"]


def test_a_quick_run_is_printed_at_its_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 3600.0)  # never due, even on a busy machine
    with Progress("work", 3) as bar:
        for _ in range(3):
            bar.advance(metrics={"loss": 0.5})
    assert lines(capsys) == ["work: 3/3"]


def test_a_resumed_run_with_nothing_left_is_printed(eager, capsys):
    with Progress("work", 3, start=3):
        pass
    assert lines(capsys) == ["work: 3/3"]


def test_a_failure_prints_no_last_count(capsys):
    with pytest.raises(RuntimeError), Progress("work", 3):
        raise RuntimeError
    assert lines(capsys) == []


def test_without_an_end_the_rate_is_printed(eager, capsys):
    with Progress("work", None, unit="frames") as bar:
        bar.advance(3, {"latency": 0.25})
        bar.advance(3)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"work: 3 frames in 00:00, \d+\.\d frames/s  latency 0\.25", first)
    assert re.fullmatch(r"work: 6 frames in 00:00, \d+\.\d frames/s", last)


def test_the_remaining_time_is_printed_until_there_is_none(eager, capsys):
    with Progress("work", 3, unit="frames") as bar:
        bar.advance(2)
        bar.advance(1)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"work: 2/3 frames in 00:00, \d+\.\d frames/s, 00:00 left", first)
    assert re.fullmatch(r"work: 3/3 frames in 00:00, \d+\.\d frames/s", last)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_goes_on_from_where_it_was(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("work", 10, start=4) as bar:
        bar.advance(5, metrics={"loss": 0.25})
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert re.match(r"work:  90%\|.*\| 9/10 \[", last)


def test_on_a_terminal_what_has_no_end_is_counted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("work", None, unit="frames") as bar:
        bar.advance(3)
    assert re.match(r"work: 3 frames \[", terminal.getvalue().rstrip().split("\r")[-1])


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_on_a_terminal_what_follows_the_bar_has_its_own_line(monkeypatch, error):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with suppress(RuntimeError), Progress("work", 3) as bar:
        bar.advance()
        assert not terminal.getvalue().endswith("\n")
        if error:
            raise error
    assert terminal.getvalue().endswith("\n")
    assert bar.done == 1


def test_work_of_an_earlier_run_counts_for_neither_rate_nor_time(eager, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress("work", 100, start=50, unit="clips") as bar:
        for now[0], count in ((10.0, 5), (20.0, 45)):
            bar.advance(count)
    assert capsys.readouterr().err.splitlines() == [
        "work: 55/100 clips in 00:10, 0.5 clips/s, 01:30 left",
        "work: 100/100 clips in 00:20, 2.5 clips/s",
    ]
