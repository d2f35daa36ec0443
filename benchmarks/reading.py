"""Speed of reading videos for scoring, beside PyAV's own decoding: ``python -m benchmarks.reading --help``.

PyAV's is `frame.to_ndarray(format="rgb24")` for every frame; both use PyAV's default threads and read the same files in
the same process. Ours also brings frames back to the size they had.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av

from benchmarks.command import Parser, check_out
from hiar.errors import UserError
from hiar.io.artifacts import code_version
from hiar.io.files import write_json
from hiar.io.hardware import hardware
from hiar.io.names import video_name
from hiar.io.progress import Progress
from hiar.io.reading import read_parts
from hiar.io.video import write_mp4
from hiar.parameters import load_params
from hiar.stages.comparison import check_videos
from hiar.worlds.interface import open_world


def bench(videos: int, frames: int, rounds: int) -> dict[str, Any]:
    """The contents of the result file; the ratio is of speeds, taken within each round."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    world = open_world(params.world)
    shown, _ = world.clips(seed=0, first=0, count=videos, frames=frames)
    with TemporaryDirectory() as folder:
        paths = [Path(folder, video_name(number, videos)) for number in range(videos)]
        for path, video in zip(paths, shown, strict=True):
            write_mp4(path, video, params.world.frames_per_second)

        def ours() -> None:
            check_videos(Path(folder), paths, (world.height, world.width), 1)
            for path in paths:
                for _ in read_parts(path):
                    pass

        seconds: dict[str, list[float]] = {"hiar": [], "pyav": []}
        with Progress("reading", rounds) as progress:
            for number in range(rounds):
                turns = [("hiar", ours), ("pyav", lambda: pyav(paths))]
                for name, read in turns if number % 2 else reversed(turns):
                    seconds[name].append(_timed(read))
                progress.advance()
    ratios = [other / own for own, other in zip(seconds["hiar"], seconds["pyav"], strict=True)]
    speeds = {name: _spread([videos * frames / one for one in found]) for name, found in seconds.items()}
    return {
        "videos": videos,
        "frames": frames,
        "size": world.height,
        "rounds": rounds,
        "frames_per_second": speeds,
        "speed_over_pyav": _spread(ratios),
        "hardware": hardware("cpu"),
        "code": code_version(),
    }


def pyav(paths: list[Path]) -> None:
    """The baseline: PyAV's own decoding."""
    for path in paths:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")


def _timed(read: Callable[[], None]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {name: float(f"{value:.4g}") for name, value in (("median", middle), ("lowest", low), ("highest", high))}


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--frames", type=int, default=60, help="per video")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True, help="NAME.json")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        for name in ("videos", "frames", "rounds"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} = {getattr(options, name)}: should be at least 1")
        result = bench(options.videos, options.frames, options.rounds)
        write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ratio = result["speed_over_pyav"]
    print(f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}) times as fast as PyAV alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
