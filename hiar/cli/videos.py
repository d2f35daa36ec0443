"""Commands on videos: sample, stream and score."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import Context, Fp8, Level, Order, Seed, app, examples
from hiar.errors import UserError
from hiar.io.launcher import alone
from hiar.io.outputs import CRF, is_terminal, output_of
from hiar.options import MOST_FRAMES, SILENCE, Once, extended_of, level_of, prompts_of, size_of, stall_of, walk_of

Video = Annotated[
    Path | None,
    typer.Option(
        help="Continue this clip, from as much of its end as fits in a window beside a new block.", show_default=False
    ),
]
Image = Annotated[
    Path | None, typer.Option(help="Begin with this image, held still for one block.", show_default=False)
]
Size = Annotated[
    str | None,
    typer.Option(metavar="WIDTHxHEIGHT", help="In pixels; default: the checkpoint's.", show_default=False),
]
Crf = Annotated[
    int, typer.Option(min=1, max=51, help="Quality of the h264: 1 is the best, 51 the worst; adding 6 halves the size.")
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Keep only the network at work on the GPU, the others in the host's memory."),
]
Resize = Annotated[bool, typer.Option("--resize", help="Scale and crop --video or --image to the video's size.")]


def _check_resize(resize: bool, *given: Path | None) -> None:
    if resize and not any(given):
        raise UserError("--resize: applies to --video or --image; give one of them, or leave it out")


@app.command(
    cls=Once,
    epilog=examples(
        'hiar sample --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --frames 60 --out out',
        "hiar sample --checkpoint artifacts/seed-0/init --prompts prompts.txt --frames 300 --order diagonal \\",
        "    --context output --seed 7 --out out --save-latents",
        "hiar sample --checkpoint models/hiar --prompts prompts.txt --frames 63 --copies 8 --out out   # on eight GPUs",
    ),
)
def sample(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a teacher, an init or a distilled student.")],
    frames: Annotated[
        int, typer.Option(min=1, max=MOST_FRAMES, help="Latent frames per video; a multiple of the checkpoint's block.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the videos, a NAME.mp4 per prompt; replaced once complete.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A UTF-8 text file, one prompt per line.")] = None,
    extended: Annotated[
        Path | None,
        typer.Option(
            help="With --prompts: a file with a longer version of each, in the same order. Videos are generated from "
            "the longer ones, captions.txt has those of --prompts.",
            show_default=False,
        ),
    ] = None,
    order: Order = None,
    context: Context = None,
    level: Level = None,
    seed: Seed = 0,
    save_latents: Annotated[bool, typer.Option("--save-latents", help="Also write latents.safetensors.")] = False,
    fp8: Fp8 = False,
    video: Video = None,
    image: Image = None,
    resize: Resize = False,
    size: Size = None,
    crf: Crf = CRF,
    offload: Offload = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Split the denoising steps over this many processes, at most one per step; one more decodes. Default: "
            "one process for all.",
            show_default=False,
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Split the videos over this many processes, each with all networks on its own GPU. Default: one.",
            show_default=False,
        ),
    ] = None,
    stall_seconds: Annotated[
        float,
        typer.Option(
            help="With --processes or --copies: end all when one is silent for so long, 1 to 86400; one may first have "
            "to load a text encoder of 11 GB."
        ),
    ] = SILENCE,
) -> None:
    """Generate videos from prompts with a checkpoint.

    On several GPUs --copies speeds up many videos, --processes a single one. Under torchrun its processes are the
    copies or, without --copies, the pipeline: the last one decodes, the others split the steps. After an interruption
    the same command resumes; once complete, it changes nothing.
    """
    if copies is not None and processes is not None:
        raise UserError("--copies: splits the videos, --processes the steps of each; leave one of them out")
    walk, shares = walk_of(order, context), level_of(level)
    _check_resize(resize, video, image)
    texts = prompts_of(prompt, prompts)
    if copies is not None and copies > len(texts):
        raise UserError(f"--copies = {copies}: each takes at least one video, of {len(texts)}; use 1 to {len(texts)}")
    captions, texts = (None, texts) if extended is None else (texts, extended_of(texts, extended))
    stall_seconds = stall_of(stall_seconds)
    # torch reads this when loaded: a failure between processes is reported once, by us, without torch's stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

    from hiar.io.artifacts import check_folder
    from hiar.io.cores import process_cores
    from hiar.io.ranks import launch, launched
    from hiar.stages.request import Request

    one_of_several = launched()
    if not one_of_several:
        check_folder("--out", out, "samples")
    pixels = size_of(size)
    request = Request(
        checkpoint,
        texts,
        frames,
        seed,
        *walk,
        level=shares,
        fp8=fp8,
        offload=offload,
        clip=video,
        image=image,
        resize=resize,
        captions=captions,
        size=pixels,
        crf=crf,
    )
    if one_of_several and copies is None:
        from hiar.stages.pipelined import sample_on_rank

        sample_on_rank(request, out, save_latents, stall_seconds=stall_seconds)
    elif one_of_several or (processes is None and copies in (None, 1)):
        from hiar.stages.prompted import sample_prompts

        sample_prompts(request, out, save_latents, copies if one_of_several else None, stall_seconds)
    else:
        count = copies or processes or 1
        names = [f"process {rank} of {count}" for rank in range(count)]
        if processes is not None:
            from hiar.stages.pipelined import plan_processes

            plan_processes(request, processes)
            names += ["the process that decodes"]
        command, threads = [sys.executable, "-m", "hiar", *sys.argv[1:]], max(1, process_cores() // count)
        launch(command, names, teller=0 if processes is None else processes, threads=threads)


@app.command(
    cls=Once,
    epilog=examples(
        'hiar stream --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --out - | ffplay -',
        'hiar stream --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --frames 600 \\',
        '    --change 300="a blue disc moves" --renew --out video.mp4',
    ),
)
def stream(
    checkpoint: Annotated[Path, typer.Option(help="Folder of an init or a distilled student.")],
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    out: Annotated[str, typer.Option(help="An mp4 file, replaced with the first block; -: the standard output.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRAME=TEXT",
            help="New prompt from a latent frame on, a multiple of the checkpoint's block. May be repeated.",
            show_default=False,
        ),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="At each --change recompute earlier blocks' context with the new prompt: it takes effect sooner.",
        ),
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_FRAMES,
            help="Latent frames, a multiple of the checkpoint's block; default: until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    order: Order = None,
    context: Context = None,
    level: Level = None,
    seed: Seed = 0,
    fp8: Fp8 = False,
    video: Video = None,
    image: Image = None,
    resize: Resize = False,
    size: Size = None,
    crf: Crf = CRF,
    offload: Offload = False,
) -> None:
    """Generate a video of any length, and watch it meanwhile.

    Each block is written as soon as it is clean. Memory and speed do not depend on the length. The video shows what
    `hiar sample` generates from this prompt and seed.
    """
    walk, shares = walk_of(order, context), level_of(level)
    _check_resize(resize, video, image)
    (text,) = prompts_of(prompt, None)
    target = output_of("--out", out)
    if is_terminal(target):
        raise UserError(f"--out = {out}: is a terminal; name a file, or pipe it to a player, such as | ffplay -")

    if renew and not change:
        raise UserError("--renew: applies where the prompt changes; give a --change, or leave it out")

    alone("hiar stream")

    from hiar.stages.request import Request
    from hiar.stages.stream import stream as write_stream

    pixels = size_of(size)
    request = Request(
        checkpoint,
        [text],
        frames,
        seed,
        *walk,
        level=shares,
        fp8=fp8,
        offload=offload,
        clip=video,
        image=image,
        resize=resize,
        size=pixels,
        crf=crf,
    )
    write_stream(request, change or [], target, renew)


@app.command(
    cls=Once,
    epilog=examples(
        "hiar score out --out score.json",
        "hiar score out --profile oracle --profile drift-lite --out score.json",
        "hiar score out --out - | jq .oracle.metrics.good",
        "hiar score out --profile vbench --profile drift --dimension motion_smoothness --out score.json",
    ),
)
def score(
    folder: Annotated[Path, typer.Argument(help="Folder of mp4 videos; captions.txt, if needed: one per line.")],
    out: Annotated[
        str,
        typer.Option(
            help="JSON file for each profile's figures: mean, standard error and count; NAME.videos.jsonl beside it "
            "has those of every video. -: stdout, without the second file."
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="oracle (built-in world) or looks (Wan): the world's own judge, with captions; the default. "
            "drift: the paper's Drift by its networks, in VBench's environment (`hiar vbench doctor drift`). "
            "drift-lite: drift of any videos, without weights. vbench, vbench-long: VBench's own package "
            "(`hiar vbench doctor`). May be repeated.",
            show_default=False,
        ),
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option(
            "--dimension", "-d", help="With vbench: one of the sixteen; may be repeated. Default: all that run here."
        ),
    ] = None,
) -> None:
    """Score any folder of videos by one profile or several.

    The oracle measures how well videos match their captions, how much they drift, and how they move. Each video is read
    once. After an interruption the same command resumes; finished videos are not scored again.
    """
    alone("hiar score")
    target = output_of("--out", out)

    from hiar.stages.profiles import score_folder

    score_folder(folder, profile or [], target, dimensions=dimension or [])
