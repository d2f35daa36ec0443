"""States on disk: any rows of what several processes wrote can be read, and damage is an error of one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiar.errors import UserError
from hiar.io.states import (
    INDEX,
    Index,
    StoredState,
    check_files,
    forget_older,
    layout_of,
    newest,
    publish,
    read_index,
    states,
    temporary_state,
    write_part,
)

WEIGHT, SHORT, COUNT = torch.randn(7, 2).bfloat16(), torch.arange(2), torch.tensor(3.0)
ROWS = [3, 3, 1]  # as FSDP distributes seven rows over three processes


def write(folder: Path, step: int) -> Path:
    """Write a state of three processes; the last one has no rows of the short tensor."""
    place, files = temporary_state(folder, step), []
    for rank, rows in enumerate(WEIGHT.split(ROWS)):
        parts = {"weight": rows.clone()} | ({"short": SHORT[rank : rank + 1].clone()} if rank < 2 else {})
        files.append(write_part(place, rank, parts | ({"count": COUNT} if rank == 0 else {})))
    tensors = {
        "weight": layout_of(WEIGHT, ROWS),
        "short": layout_of(SHORT, [1, 1, 0]),
        "count": layout_of(COUNT, None),
    }
    publish(folder, Index(step=step, curve=[{"step": 0, "b": 1.5, "a": 2e-9}], files=files, tensors=tensors))
    return folder / f"state-{step:08d}"


def test_any_rows_come_back_from_whichever_files_have_them(tmp_path: Path) -> None:
    place = write(tmp_path, 4)
    index = read_index(place)
    check_files(place, index, range(3))
    stored = StoredState(place, index)
    for start in range(8):
        for stop in range(start, 8):
            found = stored.read("weight", range(start, stop))
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, WEIGHT[start:stop])
    assert torch.equal(stored.read("weight"), WEIGHT)
    assert torch.equal(stored.read("short"), SHORT)
    assert torch.equal(stored.read("count"), COUNT)
    assert torch.equal(stored.read("short", range(2, 2)), SHORT[2:])
    with pytest.raises(ValueError, match=r"weight: files hold \(2, 2\) of \(4, 2\)"):
        stored.read("weight", range(5, 9))
    other = index.model_copy(update={"tensors": index.tensors | {"count": layout_of(COUNT.half(), None)}})
    with pytest.raises(ValueError, match=r"^count: files hold"):  # though as many bytes are there
        StoredState(place, other).read("count")
    stored.read("weight", range(2)).zero_()  # a copy: training writes to what it reads
    stored.read("count").zero_()
    assert torch.equal(stored.read("weight"), WEIGHT)
    assert torch.equal(stored.read("count"), COUNT)


def test_a_curve_keeps_its_columns_in_their_order(tmp_path: Path) -> None:
    (row,) = read_index(write(tmp_path, 4)).curve
    assert [*row.items()] == [("step", 0), ("b", 1.5), ("a", 2e-9)]
    assert isinstance(row["step"], int)


@pytest.mark.parametrize("number", range(3))
def test_a_file_that_is_lost_or_altered_is_named(number: int, tmp_path: Path) -> None:
    place = write(tmp_path, 4)
    path, index = place / f"0000{number}.safetensors", read_index(place)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    with pytest.raises(UserError, match=rf"0000{number}\.safetensors: is damaged .*SHA-256.*; remove .*state-00000004"):
        check_files(place, index, range(3))
    check_files(place, index, {0, 1, 2} - {number})
    path.write_bytes(whole[:20])
    with pytest.raises(UserError, match=r"state-00000004: [^\n]*; remove .*state-00000004"):
        StoredState(place, index)
    path.unlink()
    with pytest.raises(UserError, match=rf"0000{number}\.safetensors: no such file.*; remove .*state-00000004"):
        check_files(place, index, range(3))
    with pytest.raises(UserError, match=rf"state-00000004: .*0000{number}\.safetensors.*; remove .*state-00000004"):
        StoredState(place, index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": "0"}', '{"step": 4,', "\xff", "[" * 100_000])
def test_an_invalid_index_is_named(text: str, tmp_path: Path) -> None:
    place = write(tmp_path, 4)
    (place / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"state\.json: is not the index of a state; remove .*state-00000004: "):
        read_index(place)


def test_a_number_changed_in_the_index_is_found(tmp_path: Path) -> None:
    place = write(tmp_path, 4)
    text = (place / INDEX).read_text()
    (place / INDEX).write_text(text.replace('"step":4', '"step":5'))
    with pytest.raises(UserError, match=r"state\.json: is damaged"):
        read_index(place)


def test_the_newest_state_has_the_most_steps_and_incomplete_ones_do_not_count(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    for step in (99_999_999, 7, 100_000_000):
        write(tmp_path, step)
    write_part(temporary_state(tmp_path, 200_000_000), 0, {"count": COUNT})
    (tmp_path / "state-of-affairs").mkdir()
    assert [path.name for path in states(tmp_path)] == ["state-100000000", "state-99999999", "state-00000007"]
    forget_older(tmp_path, keep=2)
    assert [path.name for path in states(tmp_path)] == ["state-100000000", "state-99999999"]
    assert newest(tmp_path) == tmp_path / "state-100000000"
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in states(tmp_path)} == {
        "state-of-affairs",
        ".state-200000000.tmp",
    }


def test_states_after_a_milestone_stay_however_old(tmp_path: Path) -> None:
    for step in (10, 15, 20, 25, 30):
        write(tmp_path, step)
    forget_older(tmp_path, keep=1, milestone=10)
    assert [path.name for path in states(tmp_path)] == ["state-00000030", "state-00000020", "state-00000010"]


def test_a_step_that_is_saved_again_replaces_its_state(tmp_path: Path) -> None:
    write(tmp_path, 4)
    place = write(tmp_path, 4)
    assert [*tmp_path.iterdir()] == [place]
    check_files(place, read_index(place), range(3))


def test_a_kill_while_an_old_state_is_deleted_leaves_nothing_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        if path.exists():
            (path / INDEX).unlink()
            raise KeyboardInterrupt

    write(tmp_path, 3)
    write(tmp_path, 4)
    monkeypatch.setattr("hiar.io.states.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        forget_older(tmp_path, keep=1)
    assert [path.name for path in states(tmp_path)] == ["state-00000004"]
