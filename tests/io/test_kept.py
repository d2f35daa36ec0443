"""Results kept one by one: only whole, valid lines are reused after a kill, and one process writes at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.io.kept import keeping, read_kept

FIELDS = ("video", "good")


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with keeping(path):
        pass
    assert not path.exists()
    assert read_kept(path, FIELDS) == []
    with keeping(path) as keep:
        keep({"video": "ä\u2028.mp4", "good": 0.5})  # one line, though Unicode has a line separator in it
    with path.open("ab") as file:
        file.write(b'{"video": "cut o')
    whole = [{"video": "ä\u2028.mp4", "good": 0.5}]
    assert read_kept(path, FIELDS) == whole
    with keeping(path) as keep:
        keep({"video": "b.mp4", "good": None})
    assert read_kept(path, FIELDS) == [*whole, {"video": "b.mp4", "good": None}]


@pytest.mark.parametrize("line", ['{"video": 1}', '{"video": 1, "good": 2, "more": 3}', "[]", "1", "", "{"])
def test_a_line_that_is_no_result_with_these_fields_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text(f'{{"video": 0, "good": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"kept\.jsonl: line 2 is not a kept result; move the file away"):
        read_kept(path, FIELDS)


def test_one_process_at_a_time_adds_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with keeping(path) as keep, keeping(path) as other:
        keep({"video": 0})
        with pytest.raises(UserError, match=r"kept\.jsonl: another process is writing it; wait for it or choose"):
            other({"video": 1})
    with keeping(path) as keep:
        keep({"video": 2})
    assert [one["video"] for one in read_kept(path, ["video"])] == [0, 2]
