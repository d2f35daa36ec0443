"""Commands that import, export and describe checkpoints and ODE pairs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import Context, Order, app, examples
from hiar.io.launcher import alone
from hiar.options import Once, levels_of, walk_of

Levels = Annotated[
    str | None,
    typer.Option(
        metavar="T,T...",
        help="Noise levels at which steps begin, if they follow no shift: 1,0.757,0.522.",
        show_default=False,
    ),
]
Frames = Annotated[int | None, typer.Option(min=1, help="In latent frames.", show_default=False)]


@app.command(
    name="import",
    cls=Once,
    epilog=examples(
        "hiar import self_forcing_dmd.pt --weights generator_ema --base Wan2.1-T2V-1.3B-Diffusers \\",
        "    --as self-forcing --out models/self-forcing",
        "hiar import hiar.pt --base Wan2.1-T2V-1.3B-Diffusers --as hiar --out models/hiar",
        "hiar import longlive_base.pt --lora lora.pt --base Wan2.1-T2V-1.3B-Diffusers \\",
        "    --as longlive --out models/longlive",
    ),
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .pt like Self-Forcing's or HiAR's, a .safetensors, or a folder in diffusers' or Wan's own layout."
        ),
    ],
    base: Annotated[
        Path, typer.Option(help="Folder of Wan2.1-T2V for diffusers: gives text encoder, codec and sizes.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; replaced once complete.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--as", help="Sample it as self-forcing, causal-forcing, causvid, longlive or hiar.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="generator or generator_ema, if a .pt holds both.", show_default=False)
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(help="A LoRA adapter of peft, to add to the weights.", show_default=False),
    ] = None,
    lora_scale: Annotated[float, typer.Option(min=-100.0, max=100.0, help="Scale of the adapter: alpha / rank.")] = 1.0,
    height: Annotated[int, typer.Option(help="Pixels; a multiple of 16.")] = 480,
    width: Annotated[int, typer.Option(help="Pixels; a multiple of 16.")] = 832,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the videos written.")] = 16,
    order: Order = None,
    context: Context = None,
    block: Frames = None,
    window: Frames = None,
    sinks: Annotated[int | None, typer.Option(min=0, help="First blocks that never leave the window.")] = None,
    sinks_turn: Annotated[
        bool, typer.Option("--sinks-turn", help="Sinks keep their position in the window, not in the video.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps per block.", show_default=False)] = None,
    shift: Annotated[float | None, typer.Option(help="Timestep shift of the steps.", show_default=False)] = None,
    levels: Levels = None,
    renoise: Annotated[str | None, typer.Option(help="Re-noising: sde or euler.", show_default=False)] = None,
    precision: Annotated[str, typer.Option(help="Precision of sampling: bf16, or no for fp32.")] = "bf16",
) -> None:
    """Import a student trained with other code.

    The result is a checkpoint that every command accepts. Weights are checked tensor by tensor and stored unchanged; no
    code in the file is run. The base is referred to, not copied. Weights do not say how to sample a student: --as does,
    and each option overrides it.
    """
    walk = walk_of(order, context)
    alone("hiar import")

    from hiar.stages.exchange import import_checkpoint

    told = {"height": height, "width": width, "frames_per_second": fps, "precision": precision}
    told |= {"block": block, "window": window, "sinks": sinks, "steps": steps, "shift": shift, "renoise": renoise}
    told |= {"order": walk[0], "context": walk[1], "levels": levels_of(levels), "sinks_turn": sinks_turn}
    import_checkpoint(source, base, out, preset, weights, told, None if lora is None else (lora, lora_scale))


@app.command(
    name="import-pairs",
    cls=Once,
    epilog=examples(
        "hiar import-pairs ode_pairs --out models/pairs             # HiAR's: a .pt a prompt",
        "hiar import-pairs ode_pairs_lmdb --out models/pairs        # Self-Forcing's",
        "hiar import-pairs mixkit_ode_lmdb --levels 1,0.756757,0.521739 --out models/pairs   # CausVid's",
        "hiar import-pairs ode_causal_lmdb --shift 5 --clip-last --out models/pairs        # Causal-Forcing's",
    ),
)
def import_pairs_(
    source: Annotated[Path, typer.Argument(help="A folder of .pt files {prompt: trajectory}, or an LMDB.")],
    out: Annotated[Path, typer.Option(help="Folder for the pairs; replaced once complete.")],
    shift: Annotated[
        float, typer.Option(min=0.01, max=1000.0, help="Timestep shift of the levels at which states were stored.")
    ] = 8.0,
    levels: Levels = None,
    clip_last: Annotated[
        bool,
        typer.Option(
            "--clip-last",
            help="The last entry of each trajectory is the clean clip of its contexts, as in Causal-Forcing's.",
        ),
    ] = False,
    shard: Annotated[int, typer.Option(min=1, max=100_000, help="Pairs per file, and in memory at a time.")] = 16,
) -> None:
    """Import ODE pairs made with other code.

    An experiment names the result as pairs.source. States keep their type and bits. No code in the files is run;
    damaged or non-finite data and shapes that differ from the first are refused. The files do not say their noise
    levels: give --shift for even steps, or --levels.
    """
    starts = levels_of(levels)
    alone("hiar import-pairs")

    from hiar.stages.foreign_pairs import import_pairs

    levels_or_shift = shift if starts is None else starts
    print(f"{out}: {import_pairs(source, out, levels_or_shift, shard, clip_last=clip_last)}")


@app.command(
    name="export-pairs",
    cls=Once,
    epilog=examples(
        "hiar export-pairs artifacts/seed-0/pairs --to hiar --out ode_pairs",
        "hiar export-pairs artifacts/seed-0/pairs --to self-forcing --out ode_pairs_lmdb",
    ),
)
def export_pairs_(
    source: Annotated[Path, typer.Argument(help="Folder of pairs from a stage or `hiar import-pairs`.")],
    form: Annotated[str, typer.Option("--to", help="hiar (a .pt per prompt) or self-forcing (an LMDB in float16).")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Export ODE pairs for other training code.

    A trajectory keeps its states, at the student's noise levels and the clean end, and their type, except in an LMDB,
    which holds float16.
    """
    alone("hiar export-pairs")

    from hiar.stages.foreign_pairs import export_pairs

    export_pairs(source, form, out)


@app.command(cls=Once, epilog=examples("hiar base Wan2.1-T2V-1.3B --out Wan2.1-T2V-1.3B-Diffusers"))
def base(
    source: Annotated[Path, typer.Argument(help="Folder of Wan2.1-T2V in the original layout.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Convert an original Wan folder to diffusers' layout.

    Tensors are unchanged. Needed once: checkpoints refer to bases in diffusers' layout; one that has it is used as is.
    """
    alone("hiar base")

    from hiar.worlds.interface import convert_base

    convert_base(source, out)


@app.command(
    cls=Once,
    epilog=examples(
        "hiar export artifacts/seed-0/distill/hiar --to self-forcing --out hiar.pt",
        "hiar export models/hiar --to diffusers --out hiar-diffusers",
    ),
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Wan teacher, init or student.")],
    form: Annotated[str, typer.Option("--to", help="diffusers, wan (the original layout) or self-forcing (a .pt).")],
    out: Annotated[Path, typer.Option(help="A new folder; for self-forcing a new file.")],
) -> None:
    """Export a Wan checkpoint for other code, with the same bits.

    diffusers: a folder for its WanPipeline, with links to the base's other parts. self-forcing: the file that the
    released inference scripts load.
    """
    alone("hiar export")

    from hiar.stages.exchange import export_checkpoint

    export_checkpoint(checkpoint, form, out)


@app.command(cls=Once, epilog=examples("hiar models artifacts/seed-0/distill/hiar", "hiar models hiar.pt"))
def models(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoints, ours or of other code; files or folders.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="As in `hiar import`, for files that do not say how many heads there are.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the base's files, instead of comparing their sizes and times.")
    ] = False,
) -> None:
    """Say what checkpoints are, and how to sample them.

    Prints kind, world, size and hash among others.
    """
    alone("hiar models")

    from hiar.errors import UserError
    from hiar.stages.exchange import describe_model

    broken = []
    for path in paths:
        try:
            facts = describe_model(path, base, verify)
        except UserError as error:  # the others are still described
            broken.append(error)
            continue
        print(path)
        for name, value in facts:
            print(f"  {name:14} {value}")
    if broken:
        *first, last = broken
        for one in first:
            print(f"error: {one}", file=sys.stderr)
        raise last
