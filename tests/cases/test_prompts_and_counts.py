"""Prompts of several lines, and more frames than any machine holds, given to `hiar sample` and `hiar stream`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, hiar
from students import save_student

from hiar.io.names import video_name
from hiar.io.text import split_lines
from hiar.options import prompts_of
from hiar.stages.stream import change_prompts

BREAKS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\t", "\xa0", "\u3000"]
MANY = 999_999_999  # the most that commands accept, in whole blocks


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student."""
    folder = tmp_path_factory.mktemp("project")
    save_student(folder / "student")
    return folder


def request(*options: object) -> list[str]:
    return ["--checkpoint", "student", *map(str, options)]


def test_line_breaks_in_a_prompt_become_spaces(project: Path) -> None:
    text = "".join(f"a red{mark}disc moves left\r\n" for mark in BREAKS[2:])
    (project / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    hiar("sample", *request("--prompts", "prompts.txt", "--frames", 3, "--out", "out"), folder=project)
    assert (project / "out" / "captions.txt").read_text() == "a red disc moves left\n" * len(BREAKS[2:])
    assert prompts_of("\na red\ndisc\r\n moves  left", None) == ["a red disc moves left"]


def test_line_breaks_in_a_later_prompt_become_spaces() -> None:
    for mark in BREAKS:
        assert change_prompts([f"30=a red{mark}disc moves"], 3, None) == {10: "a red disc moves"}


def test_only_lf_and_crlf_end_a_line() -> None:
    text = "".join(f"one{mark}line\n" for mark in BREAKS[1:])
    assert split_lines(text) == [f"one{mark}line" for mark in BREAKS[1:]]
    assert split_lines("one\r\ntwo\n\nfour") == ["one", "two", "", "four"]
    assert split_lines("") == []


@pytest.mark.parametrize(("frames", "options"), [(MANY, ()), (MANY, ("--processes", 2))])
def test_more_frames_than_memory_are_refused_by_arithmetic(
    project: Path, frames: int, options: tuple[object, ...]
) -> None:
    command = ("sample", *request("--prompt", "a red disc moves", "--frames", frames, "--out", "big"))
    lines = hiar(*command, *options, folder=project, code=2).stderr.splitlines()
    (line,) = [line for line in lines if not line.startswith("walk: ")]
    assert line.startswith(f"error: --frames = {frames}: 1 video(s) at a time take ")
    assert line.endswith(" GB are free; ask for fewer, or watch one video with `hiar stream`")
    assert not list(project.glob("big*"))


def test_a_stream_of_the_most_frames_begins_at_once(project: Path) -> None:
    command = [sys.executable, "-m", "hiar", "stream"]
    options = request("--prompt", "a red disc moves", "--frames", MANY, "--out", "-")
    with subprocess.Popen(
        [*command, *options], cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as process:
        assert process.stdout and process.stderr
        assert len(process.stdout.read(1000)) == 1000
        process.stdout.close()  # its reader has gone
        stderr = process.stderr.read().decode()
    assert f"({MANY // 3 + 3} forward calls for {MANY // 3} blocks in 4 steps)" in stderr
    assert process.returncode == 2


def test_names_of_any_number_of_videos_sort_as_text() -> None:
    for count in (3, 10_000, 10_001, 123_456):
        names = [video_name(number, count) for number in (*range(0, count, 997), count - 1)]
        assert names == sorted(names)
    assert video_name(0, 10_000) == "0000.mp4"
    assert video_name(9_999, 10_001) == "09999.mp4"
