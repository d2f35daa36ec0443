"""Watch a long ``hiar stream``: memory, seconds per block, first frames. ``python -m benchmarks.stream --help``."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import av
import psutil

from benchmarks.command import Parser, check_out
from benchmarks.students import save_student
from hiar.errors import UserError
from hiar.io.artifacts import code_version, content_hash
from hiar.io.files import write_json
from hiar.io.hardware import hardware
from hiar.models.card import Walk, load_card
from hiar.parameters import load_params

PROMPT = "a red disc moves slowly left on a navy background"
SETTLED = 200  # blocks; memory after these is compared with memory at the end
STRETCH = 100  # blocks whose times are compared: the ones before SETTLED and the last ones
SMALL, LARGE = 4096, 2**20  # capacity of the pipe in bytes, before and after the first block


@dataclass
class Record:
    """A stream as seen from outside; seconds count from the start of its process.

    arrived: when each block arrived. cpu, resident: CPU seconds and resident bytes of the process at that time.
    first_frames: when the frames of the first block were decoded. begun: blocks that the stream had begun to write by
    then.
    """

    arrived: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    first_frames: float = 0.0
    begun: int = 0
    exit_code: int | None = None


def watch(checkpoint: Path, blocks: int, threads: int, film: Path) -> Record:
    """Stream ``blocks`` blocks, then send SIGINT; ``film`` also keeps the few that still arrive."""
    command = [sys.executable, "-m", "hiar", "stream", "--checkpoint", str(checkpoint), "--prompt", PROMPT]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "bufsize": 0, "pipesize": SMALL}
    record, ends, waiting = Record(), [0], 0
    start = time.monotonic()
    with film.open("wb") as kept, subprocess.Popen([*command, "--out", "-"], env=environment, **pipe) as process:
        assert process.stdout is not None
        resources = psutil.Process(process.pid)
        while fragment := read_fragment(process.stdout):
            record.arrived.append(time.monotonic() - start)
            kept.write(fragment)
            if len(record.arrived) == 1:
                count_frames(io.BytesIO(fragment))
                record.first_frames = time.monotonic() - start
                waiting = bytes_waiting(process.stdout)
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, LARGE)
            else:
                ends.append(ends[-1] + len(fragment))
            if len(record.arrived) <= blocks:
                record.cpu.append(sum(resources.cpu_times()[:2]))
                record.resident.append(resources.memory_info().rss)
            if len(record.arrived) == blocks:
                process.send_signal(signal.SIGINT)
        record.exit_code = process.wait()
    record.begun = 1 + sum(begin < waiting for begin in ends[:-1])
    return record


def read_fragment(pipe: IO[bytes]) -> bytes:
    """The bytes up to the end of the next fragment; none if the stream has ended."""
    data = kind = b""
    while kind != b"mdat":
        head = _read(pipe, 8)
        if not head:
            return b""
        kind = head[4:]
        data += head + _read(pipe, int.from_bytes(head[:4]) - 8)
    return data


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (part := pipe.read(size - len(data))):
        data += part
    return data


def bytes_waiting(pipe: IO[bytes]) -> int:
    """Bytes that were written but not yet read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def count_frames(film: Path | IO[bytes]) -> int:
    """The number of frames that can be decoded."""
    with av.open(film) as container:
        return sum(1 for _ in container.decode(video=0))


def bench(checkpoint: Path | None, blocks: int, threads: int) -> dict[str, Any]:
    """The contents of the result file. Raises UserError if the stream fails."""
    with tempfile.TemporaryDirectory(prefix="hiar-stream-") as folder:
        student = checkpoint or Path(folder) / "student"
        if checkpoint is None:
            save_student(student, load_params(Path("params.yaml")), Walk(order="step_first", context="output"))
        card, film = load_card(student), Path(folder) / "film.mp4"
        record = watch(student, blocks, threads, film)
        if record.exit_code != 0 or len(record.arrived) < blocks:
            raise UserError(f"hiar stream ended with exit code {record.exit_code} after {len(record.arrived)} blocks")
        frames, size = count_frames(film), film.stat().st_size
        content = content_hash(student)
    settled, stretch = min(SETTLED, blocks * 2 // 3), min(STRETCH, blocks // 3)
    before, after = record.resident[settled - 1], record.resident[-1]
    early, late = (seconds_a_block(record, last - stretch, last) for last in (settled, blocks))
    written = len(record.arrived) * card.video.block
    return {
        "student": {"stage": card.stage, "variant": card.variant, "random": checkpoint is None, "content": content},
        "walk": card.walk.model_dump() if card.walk else None,
        "blocks": {"all": blocks, "early": [settled - stretch, settled], "late": [blocks - stretch, blocks]},
        "frames_a_block": card.video.block,
        "threads": threads,
        "first_frames": {"seconds": record.first_frames, "blocks_begun_to_be_written": record.begun},
        "resident_bytes": {
            "settled": before,
            "end": after,
            "growth_percent": 100 * (after - before) / before,
        },
        "seconds_a_block": {
            "early": early,
            "late": late,
            "ratio_of_medians": late["median"] / early["median"],
            "ratio_of_means": late["mean"] / early["mean"],
            "ratio_of_computing": late["computing"] / early["computing"],
        },
        "film": {
            "bytes": size,
            "frames_written": written,
            "frames_that_play": frames,
            "exit_code_after_sigint": record.exit_code,
        },
        "trace": [
            {"block": block, "seconds": record.arrived[block - 1], "resident_bytes": record.resident[block - 1]}
            for block in range(stretch, blocks + 1, stretch)
        ],
        "hardware": hardware("auto"),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "av")},
        "code": code_version(),
    }


def seconds_a_block(record: Record, first: int, last: int) -> dict[str, float]:
    """Seconds per block over the blocks after number ``first`` up to number ``last``, counted from 1."""
    between = [after - before for before, after in itertools.pairwise(record.arrived[first - 1 : last])]
    return {
        "mean": statistics.mean(between),
        "median": statistics.median(between),
        "longest": max(between),
        "computing": (record.cpu[last - 1] - record.cpu[first - 1]) / (last - first),
    }


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code, which is 1 if the video does not play to its end."""
    parser = Parser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="a student; default: the student of params.yaml, with random weights"
    )
    parser.add_argument("--blocks", type=int, default=10_000, help="blocks until the stream is interrupted")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the stream")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        if options.blocks < 6:
            raise UserError(f"--blocks = {options.blocks}: are too few to compare; give at least 6")
        result = bench(options.checkpoint, options.blocks, options.threads)
        write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("first_frames", "resident_bytes", "seconds_a_block", "film"):
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items()))
    return 0 if result["film"]["frames_that_play"] == result["film"]["frames_written"] else 1


if __name__ == "__main__":
    sys.exit(main())
