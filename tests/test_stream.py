"""`hiar stream` as a process: watched while it runs, ended by Ctrl-C, abandoned by its reader."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import pytest
import torch
from commands import ROOT, environment, hiar, start
from safetensors.torch import load_file
from students import save_attentive_student
from torch import Tensor

from hiar.io.video import read_mp4
from hiar.models.generator import load_generator
from hiar.stages.stream import clean_blocks, stream_rollout
from hiar.stages.videos import decoding

BLOCK = 3
PROMPT, OTHER = "a red disc moves left", "a blue wide bar moves"
PIPE = 4096  # bytes that a pipe holds: less than a block of video

pytestmark = pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes have a size that cannot be chosen")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "student"
    save_attentive_student(folder)
    return folder


@contextmanager
def streaming(student: Path, *options: object, out: object = "-") -> Iterator[subprocess.Popen[bytes]]:
    """A running endless stream, killed at the end."""
    arguments = ("--checkpoint", student, "--prompt", PROMPT, "--out", out, *options)
    pipes = [os.pipe() for _ in range(2)]
    for reading, _ in pipes:
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE)
    with open(pipes[0][1], "w") as stdout, open(pipes[1][1], "w") as stderr:
        process = start("stream", *arguments, folder=ROOT, stdout=stdout, stderr=stderr)
    readers = [open(reading, "rb", buffering=0) for reading, _ in pipes]  # noqa: SIM115 (closed with the process)
    process.stdout, process.stderr = readers  # type: ignore[assignment]
    with process:
        try:
            yield process  # type: ignore[misc]
        finally:
            process.kill()


def read_fragment(pipe: BinaryIO) -> bytes:
    """The bytes up to the end of the next fragment, and no more."""
    data = kind = b""
    while kind != b"mdat":
        head = read_exactly(pipe, 8)
        size, kind = int.from_bytes(head[:4]), head[4:]
        data += head + read_exactly(pipe, size - 8)
    return data


def read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = pipe.read(size - len(data))
        assert part, "the stream has ended"
        data += part
    return data


def read_to_second_block(pipe: BinaryIO) -> bytes:
    """The bytes up to the second block, which then waits in the pipe, too large for it."""
    return read_fragment(pipe) + read_exactly(pipe, 8)


def frames_of(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def ended(process: subprocess.Popen[bytes], code: int) -> str:
    """The last line on stderr of a stream that must end with this exit code."""
    assert process.stderr is not None
    stderr = process.stderr.read().decode()
    assert process.wait() == code, stderr
    return last_line(stderr)


def last_line(stderr: str) -> str:
    """The last line; those before it may only report the walk and its progress."""
    *others, last = stderr.splitlines()
    assert all(line.startswith(("walk: ", "stream: ")) for line in others), stderr
    return last


def close(video: Tensor, expected: Tensor) -> bool:
    """Whether two videos are the same in each frame, up to the loss of h264."""
    return float((video.float() - expected.float()).square().mean(dim=(1, 2, 3)).max()) < 1


def test_a_stream_shows_what_sample_makes_until_the_prompt_changes(student: Path, tmp_path: Path) -> None:
    common = ("--checkpoint", student, "--prompt", PROMPT, "--frames", 24, "--seed", 4)
    run = hiar("stream", *common, "--change", f"15={OTHER}", "--out", "v.mp4", folder=tmp_path)
    assert run.stdout == ""
    assert re.fullmatch(r"stream: 24/24 frames in \d\d:\d\d, \d+\.\d frames/s", last_line(run.stderr))
    hiar("sample", *common, "--save-latents", "--out", "sample", folder=tmp_path, OMP_NUM_THREADS="1")
    source = load_generator(student)
    video = read_mp4(tmp_path / "v.mp4")
    assert len(video) == 24
    sampled = decoding(source)(load_file(tmp_path / "sample" / "latents.safetensors")["latents"][0])
    assert close(video[:15], sampled[:15])
    assert not close(video[15:18], sampled[15:18])
    walk = source.card.walk
    assert walk is not None
    changed = clean_blocks(source, walk, stream_rollout(source, PROMPT, {5: OTHER}, walk, None, seed=4))
    assert close(video, decoding(source)(torch.cat(list(islice(changed, 8)), dim=1)))


def test_the_first_block_can_be_watched_while_the_next_is_written(student: Path) -> None:
    """Until more is read, no fourth block can be made, because the second does not fit into the pipe."""
    with streaming(student) as process:
        first = read_fragment(process.stdout)
        assert frames_of(first) == BLOCK
        assert process.poll() is None
        second = read_fragment(process.stdout)
        assert len(second) > fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)
        assert frames_of(first + second) == 2 * BLOCK


def test_an_interrupted_stream_finishes_its_block_and_ends_well(student: Path) -> None:
    with streaming(student) as process:
        video = read_to_second_block(process.stdout)
        process.send_signal(signal.SIGINT)
        video += process.stdout.read()
        assert re.fullmatch(r"stream: 6 frames in \d\d:\d\d, \d+\.\d frames/s", ended(process, 0))
    assert frames_of(video) == 2 * BLOCK


def test_an_interrupted_file_plays_to_its_end(student: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"")
    with streaming(student, out=path) as process:
        while not path.stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        last = ended(process, 0)
        assert process.stdout.read() == b""
    assert last.startswith(f"stream: {len(read_mp4(path))} frames in ")


def test_a_stream_that_is_interrupted_before_its_end_says_so(student: Path) -> None:
    with streaming(student, "--frames", 3000) as process:
        read_fragment(process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert ended(process, 130) == "interrupted"


def test_a_reader_that_has_gone_ends_the_stream(student: Path) -> None:
    with streaming(student) as process:
        read_fragment(process.stdout)
        process.stdout.close()
        assert ended(process, 2) == "error: output: broken pipe; its reader has exited; start both again"


def test_a_stream_whose_reader_ctrl_c_ended_too_ends_well(student: Path) -> None:
    with streaming(student) as process:
        read_to_second_block(process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert ended(process, 0).startswith("stream: 3 frames in ")


def test_video_is_not_written_to_a_terminal(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    with open(terminal, "rb"), open(side, "wb") as stdout:
        command = [sys.executable, "-m", "hiar", "stream", "--checkpoint", "none", "--prompt", PROMPT, "--out", "-"]
        run = subprocess.run(command, env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: --out = -: is a terminal; name a file, or pipe it to a player, such as | ffplay -\n"
