"""Progress in a log: lines, not a bar, and each count once."""

import pytest

from hiar.io import progress
from hiar.io.progress import Progress


@pytest.fixture
def eager(monkeypatch):
    """Every count gets a line."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


def lines(capsys):
    return [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]


def test_the_last_count_is_told_once(eager, capsys):
    with Progress("work", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert lines(capsys) == ["work: 1/3", "work: 2/3", "work: 3/3"]


def test_a_quick_run_is_told_at_its_end(capsys):
    with Progress("work", 3) as bar:
        for _ in range(3):
            bar.advance(metrics={"loss": 0.5})
    assert lines(capsys) == ["work: 3/3"]


def test_a_resumed_run_with_nothing_left_is_told(eager, capsys):
    with Progress("work", 3, start=3):
        pass
    assert lines(capsys) == ["work: 3/3"]


def test_a_failure_tells_no_end(capsys):
    with pytest.raises(RuntimeError), Progress("work", 3):
        raise RuntimeError
    assert lines(capsys) == []
