"""Values of options, as users write them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hiar.errors import UserError
from hiar.options import Once, extended_of, level_of, levels_of, prompts_of, size_of, stall_of


@pytest.mark.parametrize(
    ("text", "level"), [(None, None), ("1", 1.0), ("0", 0.0), ("0.85", 0.85), ("0.8,1.5,2", (0.8, 1.5, 2.0))]
)
def test_a_level_is_one_number_or_several(text: str | None, level: object) -> None:
    assert level_of(text) == level


@pytest.mark.parametrize("text", ["2.01", "-0.1", "0.5,3", "nan", "", "0.5,", "half"])
def test_invalid_levels_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--level = {text}: "):
        level_of(text)


def test_levels_fall_from_one() -> None:
    assert levels_of(None) is None
    assert levels_of("1,0.757,0.522") == (1.0, 0.757, 0.522)
    for text in ("0.9,0.5", "1,0.5,0.5", "1,0.5,0", "1,nan", "1,,0.5", "", "half"):
        with pytest.raises(UserError, match=f"--levels = {text}: "):
            levels_of(text)


def test_sizes_are_width_and_height() -> None:
    assert size_of(None) is None
    assert {size_of(text) for text in ("832x480", "832X480", "832×480")} == {(480, 832)}
    for text in ("832", "x480", "832x", "832x480x3", "-8x8", "８x8", "8.0x8"):
        with pytest.raises(UserError, match=f"--size = {text}: is not a width and height"):
            size_of(text)


def test_stall_seconds_have_a_lowest_and_a_highest_value() -> None:
    assert [stall_of(seconds) for seconds in (1.0, 86_400.0)] == [1.0, 86_400.0]
    for seconds in (0.99, 86_401.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"^--stall-seconds = .*: should be 1 to 86400; leave it out for 600$"):
            stall_of(seconds)


def test_a_line_of_a_prompt_file_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa  fox\r\n \t\na tram\x0bin the rain\n".encode())
    assert prompts_of(None, path) == ["a fox", "a tram in the rain"]
    path.write_bytes(b"a fox\na caf\xe9\na tram\na bee\n")
    with pytest.raises(UserError, match=r"prompts\.txt: line 2: byte 11 = 0xe9 is not UTF-8; save the file as UTF-8$"):
        prompts_of(None, path)
    path.write_bytes(b" \n\n")
    with pytest.raises(UserError, match=r"prompts\.txt: holds no prompt; write one a line$"):
        prompts_of(None, path)
    assert prompts_of(" a \n fox", None) == ["a fox"]
    for prompt, file, line in (
        (" ", None, "--prompt = ' ': is empty"),
        ("a", path, "--prompt, --prompts: give exactly"),
    ):
        with pytest.raises(UserError, match=f"^{line}"):
            prompts_of(prompt, file)


def test_extended_prompts_must_be_as_many_as_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a fox on a ridge\na tram in the rain\n")
    assert extended_of(["a fox", "a tram"], path) == ["a fox on a ridge", "a tram in the rain"]
    for prompts in (["a fox"], ["a fox", "a tram", "a bee"]):
        message = rf"long\.txt: holds 2 prompts for the {len(prompts)} of --prompts; write one a line, in their order"
        with pytest.raises(UserError, match=message):
            extended_of(prompts, path)
    with pytest.raises(UserError, match="no such file; name a text file with one prompt a line"):
        prompts_of(None, tmp_path)


def test_only_list_options_may_be_repeated() -> None:
    """All other options may be given only once."""
    app = typer.Typer()

    @app.command(cls=Once)
    def command(
        names: list[str] = typer.Option([], "--name", "-n"),  # noqa: B008
        seed: int = typer.Option(0, "-s", "--seed"),
        fp8: bool = typer.Option(False, "--fp8"),
    ) -> None:
        typer.echo(f"{names} {seed} {fp8}")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    assert run("--name", "a", "-n", "b", "--seed", "3").output == "['a', 'b'] 3 False\n"
    for arguments, line in (
        (("--seed", "3", "--seed=4"), "--seed: is given 2 times (--seed 3, then --seed=4); give it once"),
        (("-s", "3", "--seed=4"), "--seed: is given 2 times (-s 3, then --seed=4); give it once"),
        (("--fp8", "-n", "a", "--fp8"), "--fp8: is given 2 times (--fp8); give it once"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UserError)
        assert str(error) == line
