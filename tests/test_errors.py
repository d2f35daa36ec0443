"""Lines for users: out of memory, names that are not known, and what is kept out of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hiar.errors import BrokenRule, memory_line, require, say, suggest, without_password


@pytest.mark.parametrize(
    ("allocate", "size"),
    [
        (lambda: np.empty(2**56, np.uint8), " for 64.0 PiB at once"),
        (lambda: torch.empty(2**56, dtype=torch.uint8), " for 72057594037927936 bytes at once"),
        (lambda: torch.empty(2**62, dtype=torch.float64), ""),  # whose size in bytes is no number of 64 bits
    ],
)
def test_libraries_that_cannot_allocate_are_understood(allocate: Callable[[], object], size: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert memory_line(caught.value) == (f"memory: not enough{size}; lower batches or sizes, or ask for less at a time")


def test_a_full_gpu_is_understood_and_other_errors_are_not_taken_for_it() -> None:
    full = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    assert str(memory_line(full)).startswith("memory: not enough for 2.50 GiB at once; ")
    assert str(memory_line(MemoryError())).startswith("memory: not enough; ")
    assert memory_line(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_the_closest_known_name_is_suggested_or_all_are_listed() -> None:
    assert suggest("hair", ["shared", "hiar"]) == "did you mean 'hiar'?"
    assert suggest("x", iter(["shared", "hiar"])) == "known: shared, hiar"
    assert suggest("x", []) == "known: none"


def test_only_a_urls_user_and_password_are_left_out() -> None:
    text = "see http://me:hidden@host/a@b and s3://bucket/c@d, not me@here//x"
    assert without_password(text) == "see http://host/a@b and s3://bucket/c@d, not me@here//x"


def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("a \n mistake")
    assert capsys.readouterr().err == "error: a mistake\n"
    monkeypatch.setenv("HIAR_ERROR_FILE", str(tmp_path / "line"))
    say("a \n lone \udce9")
    assert (tmp_path / "line").read_text() == "a lone \\udce9"
    assert capsys.readouterr().err == ""


def test_a_broken_rule_has_the_parts_of_its_line() -> None:
    require(True, "level", 3, "write null")
    with pytest.raises(BrokenRule, match=r"^level = 3: write null$") as caught:
        require(False, "level", 3, "write null")
    assert (caught.value.field, caught.value.value, caught.value.remedy) == ("level", 3, "write null")
