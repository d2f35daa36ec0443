"""Wan2.1-1.3B's shape on several GPUs, from the cost model alone: ``python -m benchmarks.extrapolate``.

Nothing here is measured. The assumptions: the time of a forward call is proportional to its floating-point operations,
nothing else takes time, and every process has a GPU; the codec is left out. More GPUs than steps run several
pipelines, each with its own video.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cost_model import timeline
from benchmarks.flops import Sizes, pass_flops, row_flops, sizes
from benchmarks.presets import PRESETS, Preset
from benchmarks.report import table
from benchmarks.walks import SELF_FORCING, Walk, pipelined
from hiar.io.files import write_text

OUT = Path(__file__).parent / "results" / "extrapolation.md"
PRESET = "wan-1.3b"
LENGTHS = {7: "5 s, one window", 27: "20 s, the paper's Table 1", 240: "3 minutes"}
GPUS = (1, 2, 4, 8, 64)
PAPER = 30 / 17  # frames/s of HiAR on 4 GPUs over those of block-first generation, Table 1


@dataclass(frozen=True)
class Estimate:
    """Times in full passes: forward calls on one block with a full window.

    video: one video, from start to end. throughput: videos that all GPUs make in the time of one full pass.
    between: from one finished block to the next, in the middle of the video.
    """

    video: float
    throughput: float
    between: float


def estimate(preset: Preset, walk: Walk, blocks: int, gpus: int) -> Estimate:
    """The estimate for ``gpus`` GPUs that all run ``walk``, one process per GPU."""
    shape, grid = sizes(preset), preset.grid(walk, blocks)
    places = walk.places(grid)
    seconds = [[pass_flops(shape, grid, step) / _unit(preset, shape) for step in passes] for passes in places]
    slots = timeline(places, seconds)
    last = grid.steps - 1
    finished = sorted(slot.end for row in slots for slot in row for cell in slot.step.denoise if cell.step == last)
    middle = blocks // 2
    # Videos follow each other without a gap, so the busiest process of a pipeline sets the rate.
    rate = gpus / len(places) / max(map(sum, seconds))
    return Estimate(finished[-1], rate, finished[middle] - finished[middle - 1])


def _unit(preset: Preset, shape: Sizes) -> int:
    return row_flops(shape, preset.window_blocks)


def page(preset: Preset) -> str:
    """The estimates as Markdown."""
    shape = sizes(preset)
    assert __doc__ is not None
    parts = [
        f"# {PRESET}: what the cost model says of several GPUs",
        __doc__.partition("\n\n")[2].replace("\n", " ").strip(),
        f"A full pass - one block of {preset.block} latent frames, {shape.tokens} tokens, in a window of "
        f"{preset.window_blocks} blocks - is {_unit(preset, shape) / 1e12:.1f} TFLOP, of which the attention to the "
        f"window is {_attention_share(preset, shape):.0%}. Times are in full passes, speed-ups against block_first on "
        "one GPU. Shared context makes as many passes as block_first and has the same figures. Separate passes have "
        "those of fused ones, since time is assumed proportional to operations.",
    ]
    for blocks, meaning in LENGTHS.items():
        parts += [f"## {blocks} blocks ({meaning})", table(HEADS, list(_rows(preset, blocks)))]
    parts.append(_conclusions(preset))
    return "\n\n".join(parts) + "\n"


HEADS = ["walk", "GPUs", "one video", "speed-up", "between blocks", "speed-up", "videos of all GPUs in the same time"]


def _rows(preset: Preset, blocks: int) -> Iterator[list[str]]:
    base = estimate(preset, SELF_FORCING, blocks, 1)
    for gpus in GPUS:
        for walk in [SELF_FORCING, pipelined("fused", min(gpus, preset.steps))]:
            here = estimate(preset, walk, blocks, gpus)
            copies = gpus // max(1, walk.processes)
            name = walk.name if copies == 1 else f"{copies} x {walk.name}"
            yield [
                name,
                str(gpus),
                f"{here.video:.0f}",
                f"{base.video / here.video:.2f}",
                f"{here.between:.2f}",
                f"{base.between / here.between:.2f}",
                f"{here.throughput / base.throughput:.2f}",
            ]


def _conclusions(preset: Preset) -> str:
    def gain(blocks: int, attribute: str) -> float:
        base, four = (estimate(preset, walk, blocks, 4) for walk in (SELF_FORCING, pipelined("fused", 4)))
        return getattr(base, attribute) / getattr(four, attribute)

    blocks = 17 / (preset.block * preset.stretch)
    rate = blocks * (preset.steps + 1) * _unit(preset, sizes(preset))
    short, paper, long = (gain(blocks, "video") for blocks in LENGTHS)
    return "\n".join(
        [
            "## Beside the paper",
            "",
            f"- Bound: a pipeline of four does one fused pass of two blocks where block_first does five of one, "
            f"5 / 2 = 2.5 times. Filling and draining it leave {short:.2f}, {paper:.2f} and {long:.2f} times at the "
            f"three lengths.",
            f"- The paper reports 30 frames/s on four GPUs against 17, {PAPER:.2f} times, and .69 s / .30 s = "
            f"{0.69 / 0.30:.1f} times from block to block; the model says {gain(27, 'between'):.2f} times from block "
            "to block. It ignores decoding, messages, kernel launches and passes too small to fill a GPU, so it should "
            "err high.",
            f"- 17 frames of video a second are {blocks:.2f} blocks: {rate / 1e12:.0f} TFLOP/s in "
            "passes with full windows, within a current GPU's reach. (As latent frames: four times that.)",
            "- A pipeline makes one video faster, not more videos: the last column is higher when every GPU walks "
            "block_first, or with shared context, by itself.",
            "- With more GPUs than steps, one video gets no faster: 8 and 64 GPUs are 2 and 16 pipelines.",
        ]
    )


def _attention_share(preset: Preset, shape: Sizes) -> float:
    full = row_flops(shape, preset.window_blocks)
    return (full - row_flops(shape, 0)) / full


def main() -> int:
    """Write and print the page."""
    text = page(PRESETS[PRESET]())
    write_text(OUT, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
