"""Speed of drawing noise, beside torch's generator seeded anew for each sample: ``python -m benchmarks.drawing``.

The second is how noise was drawn before. Both draw the noise of a rollout's cells with one thread in the same process.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import Parser, check_out
from hiar.errors import UserError
from hiar.io.artifacts import code_version
from hiar.io.files import write_json
from hiar.io.hardware import hardware
from hiar.io.progress import Progress
from hiar.noise import normals

# Samples, and the shape of each: blocks of the built-in world, alone and in a batch, clips of it, a block of Wan2.1.
CASES = {
    "world, a block": (1, (4, 3, 8, 8)),
    "world, a block of 16 videos": (16, (4, 3, 8, 8)),
    "world, 16 clips": (16, (4, 15, 8, 8)),
    "Wan2.1, a block": (1, (16, 3, 60, 104)),
}
NUMBERS = 3_000_000  # drawn per round and case


def bench(rounds: int) -> dict[str, Any]:
    """The contents of the result file; ratios are of speeds, taken within each round."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with Progress("drawing", rounds * len(CASES)) as progress:
        for name, (samples, shape) in CASES.items():
            count = samples * torch.Size(shape).numel()
            calls = max(3, NUMBERS // count)
            seconds: dict[str, list[float]] = {"hiar": [], "torch": []}
            for number in range(rounds):
                turns = [("hiar", drawn), ("torch", seeded_anew)]
                for way, draw in turns if number % 2 else reversed(turns):
                    seconds[way].append(_timed(draw, samples, shape, calls))
                progress.advance()
            ratios = [other / own for own, other in zip(seconds["hiar"], seconds["torch"], strict=True)]
            found[name] = {
                "microseconds": {way: _digits(1e6 * statistics.median(values)) for way, values in seconds.items()},
                "speed_over_torch": {
                    "median": _digits(statistics.median(ratios)),
                    "lowest": _digits(min(ratios)),
                    "highest": _digits(max(ratios)),
                },
            }
    return {"rounds": rounds, "cases": found, "hardware": hardware("cpu"), "code": code_version()}


def drawn(samples: int, shape: tuple[int, ...], block: int) -> Tensor:
    """Noise as this project draws it."""
    return normals("rollout", 0, range(samples), shape, step=1, block=block)


def seeded_anew(samples: int, shape: tuple[int, ...], block: int) -> Tensor:
    """The baseline: a torch generator seeded for each sample."""
    noise = []
    for sample in range(samples):
        digest = hashlib.blake2b(f"0/{sample}/1/{block}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise)


def _timed(draw: Callable[[int, tuple[int, ...], int], Tensor], samples: int, shape: tuple[int, ...], n: int) -> float:
    start = time.perf_counter()
    for block in range(n):
        draw(samples, shape, block)
    return (time.perf_counter() - start) / n


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.drawing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, required=True, help="NAME.json")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        if options.rounds < 1:
            raise UserError(f"--rounds = {options.rounds}: should be at least 1")
        write_json(options.out, bench(options.rounds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
