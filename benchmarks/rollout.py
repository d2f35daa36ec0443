"""Measure every walk of the grid, beside the cost model's prediction: ``python -m benchmarks.rollout --help``."""

from __future__ import annotations

import argparse
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Parser, check_out
from benchmarks.figures import costs_of, ratio_record, reference_record, spread, walk_record
from benchmarks.flops import sizes
from benchmarks.memory import memory_needed, probe_bytes
from benchmarks.pipelined import pipeline
from benchmarks.presets import PRESETS, Setup, build
from benchmarks.reference import Reference, check_reference, reference
from benchmarks.report import write_report
from benchmarks.samples import Samples, measure, tell
from benchmarks.timing import PEAK_SIZE
from benchmarks.walks import SELF_FORCING, Walk, all_walks, ratios
from hiar.errors import UserError, suggest
from hiar.io.artifacts import code_version
from hiar.io.cores import process_cores
from hiar.io.free import free_bytes
from hiar.io.hardware import hardware
from hiar.models.compiled import Compiled, compiled, measure_compiled
from hiar.models.fp8 import with_fp8
from hiar.models.kernels import using
from hiar.rollout.cell import Rollout
from hiar.stages.computing import full_pass


def bench(
    preset: str,
    blocks: int,
    batch: int,
    rounds: int,
    threads: int,
    processes: int | None,
    checkout: Path | None,
    names: Sequence[str],
    compile_layers: bool,
    fp8: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the contents of the result file after each round, since a machine may be ours for a limited time."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setup = build(PRESETS[preset](), device, batch)
    steps = setup.preset.steps
    processes = longest_pipeline(device, steps, processes)
    walks, left_out = fitting(setup, chosen(all_walks(processes), names), blocks)
    longer = [walk for walk in all_walks(0 if names else steps) if walk.processes > processes]
    left_out |= {walk.name: f"pipelines were limited to {processes}" for walk in longer}
    processes = max(walk.processes for walk in walks)
    kernel = setup.kernel()
    fp8_error = to_fp8(setup, kernel) if fp8 else None
    tell(f"attention: {kernel or 'default'}" + ("" if fp8_error is None else f"; fp8 changes {fp8_error:.1%}"))
    layers = compiling(setup, kernel) if compile_layers else None
    if layers:
        tell(f"compiled layers: {layers.gain:.2f} times as fast, {layers.first_call:.0f} s for the first call")
    with (
        using(kernel),
        compiled(setup.denoiser) if compile_layers else nullcontext(),
        pipeline(preset, setup, threads, processes, kernel, compile_layers) if processes else nullcontext() as walkers,
        reference(checkout, setup, threads) if checkout else nullcontext() as other,
    ):
        told = {
            "preset": preset,
            "blocks": blocks,
            "batch": batch,
            "threads": threads,
            "attention": kernel or "default",
            "fp8": None if fp8_error is None else {"error": fp8_error},
            "compiled": layers and layers._asdict(),
            "left_out": left_out,
        }
        for number, samples in enumerate(measure(setup, walkers, other, walks, blocks, rounds), start=1):
            yield told | {"rounds": number} | results(setup, walks, blocks, threads, processes, samples, other)


def results(
    setup: Setup,
    walks: list[Walk],
    blocks: int,
    threads: int,
    processes: int,
    samples: Samples,
    other: Reference | None,
) -> dict[str, Any]:
    """The figures of the samples, and where they were taken."""
    device, window = setup.device, setup.preset.window_blocks
    costs = costs_of(samples.parts, window)
    together = costs_of(samples.together, window) if samples.together else costs
    cores = max(1, process_cores() // threads if device.type == "cpu" else processes)
    records = [
        walk_record(setup, walk, blocks, samples.walks, samples.peak, together if walk.processes else costs, cores)
        for walk in walks
    ]
    kept = [(fast, slow) for fast, slow in ratios(processes) if fast in walks and slow in walks]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    size = PEAK_SIZE[device.type]
    return {
        "device": device.type,
        "dtype": str(setup.preset.dtype).removeprefix("torch."),
        "hardware": hardware("auto"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "diffusers")},
        "code": code_version(),
        "shape": vars(sizes(setup.preset))
        | {"latent_block": setup.preset.shape, "window_blocks": window, "steps": setup.preset.steps},
        "peak": {"flops_per_second": samples.peak, "measured_with": f"product of {size}x{size} matrices"},
        "process_peak_memory": {"bytes": peak, "of": "the measuring process over all its walks, not of one walk"},
        "parts_seconds": {name: spread(seconds) for name, seconds in samples.parts.items()},
        "parts_seconds_together": {name: spread(seconds) for name, seconds in samples.together.items()},
        "walks": records,
        "ratios": [ratio_record(fast, slow, samples.walks, records) for fast, slow in kept],
        "reference": other and other.facts() | reference_record(setup, walks, blocks, samples.walks, samples.others),
    }


def to_fp8(setup: Setup, kernel: str | None) -> float:
    """Put linear layers into fp8; returns the relative change of a pass. Raises UserError if the device cannot."""
    with using(kernel), _refusals("--fp8"):
        return with_fp8(setup.denoiser, partial(full_pass, setup.denoiser, _one_window(setup)))


def compiling(setup: Setup, kernel: str | None) -> Compiled:
    """Gain, error and first-call time of compiled layers for a pass on one block. Raises UserError if torch cannot."""
    with using(kernel), _refusals("--compile"):
        return measure_compiled(setup.denoiser, full_pass(setup.denoiser, _one_window(setup)))


def _one_window(setup: Setup) -> Rollout:
    return setup.rollout(setup.preset.grid(SELF_FORCING, setup.preset.window_blocks))


@contextmanager
def _refusals(option: str) -> Iterator[None]:
    """Turn torch's errors into a one-line UserError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{option}: torch cannot here ({' '.join(str(error).split())[:100]}); leave it out") from None


def longest_pipeline(device: torch.device, steps: int, asked: int | None) -> int:
    """Processes of the longest pipeline. Raises UserError if more are asked for than the GPUs allow."""
    if device.type != "cuda":
        return steps if asked is None else asked
    gpus = torch.cuda.device_count()
    places = max(0, gpus - 1)  # one is for the codec
    if asked is not None and asked > places:
        raise UserError(f"--processes = {asked}: need {asked + 1} GPUs, one of them for the codec; there are {gpus}")
    return min(places, steps) if asked is None else asked


def chosen(walks: list[Walk], names: Sequence[str]) -> list[Walk]:
    """The walks with these names; all if none is named. Raises UserError for an unknown name."""
    for name in names:
        if name not in [walk.name for walk in walks]:
            raise UserError(f"--walk = {name}: no such walk here; {suggest(name, [walk.name for walk in walks])}")
    return [walk for walk in walks if not names or walk.name in names]


def fitting(setup: Setup, walks: list[Walk], blocks: int) -> tuple[list[Walk], dict[str, str]]:
    """The walks that fit in the free memory, and why the others do not. Raises UserError if none fits."""
    memory, kept, left_out = free_bytes(setup.device), [], {}
    for walk in walks:
        needed = max(memory_needed(setup, walk, blocks), probe_bytes(setup, walk, blocks))
        if needed > memory:
            left_out[walk.name] = f"needs {needed / 2**30:.1f} GiB, {memory / 2**30:.1f} are free"
        else:
            kept.append(walk)
    if not kept:
        raise UserError(f"--preset: no walk fits in memory ({next(iter(left_out.values()))}); choose a smaller preset")
    return kept, left_out


def arguments(line: list[str] | None) -> argparse.Namespace:
    """The checked options. Raises UserError for invalid ones."""
    parser = Parser(prog="python -m benchmarks.rollout", description=__doc__)
    parser.add_argument("--preset", required=True, help=f"a model's shape: {', '.join(PRESETS)}")
    parser.add_argument("--blocks", type=int, default=60, help="length of a walk")
    parser.add_argument("--batch", type=int, default=1, help="videos at a time")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured, interleaved")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    parser.add_argument("--processes", type=int, help="longest pipeline; default: as steps and GPUs allow; 0: none")
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="checkout of the original implementation, to time it beside ours"
    )
    parser.add_argument(
        "--compile", action="store_true", dest="compile_layers", help="run the layers compiled, and report the gain"
    )
    parser.add_argument(
        "--walk", action="append", default=[], dest="names", help="measure this walk; repeatable; default: all walks"
    )
    parser.add_argument("--fp8", action="store_true", help="run linear layers in fp8, and report the error")
    parser.add_argument("--out", type=Path, required=True, help="NAME.json; NAME.md and NAME.svg are written beside it")
    options = parser.parse_args(line)
    if options.preset not in PRESETS:
        raise UserError(f"--preset = {options.preset}: no such preset; {suggest(options.preset, PRESETS)}")
    for name in ("blocks", "batch", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} = {getattr(options, name)}: must be at least 1")
    if options.reference is not None:
        check_reference(options.reference, PRESETS[options.preset]())
    steps = PRESETS[options.preset]().steps
    if options.processes is not None and not 0 <= options.processes <= steps:
        raise UserError(
            f"--processes = {options.processes}: a pipeline has 1 to {steps} processes, one a step; 0: none"
        )
    check_out(options.out)
    return options


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        options = vars(arguments(line))
        out, checkout = options.pop("out"), options.pop("reference")
        out.parent.mkdir(parents=True, exist_ok=True)
        for result in bench(**options, checkout=checkout):
            page = write_report(out, result)
        print(page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
