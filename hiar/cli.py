"""The command line. Everything heavy is imported inside the commands: `--help` answers at once.

A mistake of the user is one line on the standard error and exit code 2, a failed run its stage's exit code, Ctrl-C 130.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hiar.errors import ERROR_FILE, RunFailed, UserError, memory_line
from hiar.io.files import writing
from hiar.io.launcher import alone
from hiar.io.outputs import is_terminal, output_of
from hiar.options import MOST_FRAMES, MOST_SEED, Once, prompts_of, stall_of, walk_of

# What each stage is told on the command line.
STAGES = {
    "codec": {"seed", "restart-from"},
    "teacher": {"seed", "restart-from"},
    "pairs": {"seed"},
    "init": {"seed", "restart-from"},
    "distill": {"seed", "variant", "restart-from"},
    "sample": {"seed", "model", "variant"},
    "score": set(),
    "report": set(),
}

INTERRUPTED = 130


def _examples(*lines: str) -> str:
    """Lines to show as they are at the end of a help text."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, distil, sample and score autoregressive video generators: Self-Forcing, HiAR and what lies between."
    "\n\nStart with `hiar run smoke` (two minutes), then `hiar run` (the default experiment).",
)
config = typer.Typer(help="Look at the parameters of an experiment.")
app.add_typer(config, name="config")

Experiment = Annotated[
    str | None,
    typer.Argument(help="A file of experiments/ without .yaml; none: params.yaml as it is.", show_default=False),
]

Order = Annotated[
    str | None, typer.Option(help="block_first, step_first or diagonal; default: as trained.", show_default=False)
]
Context = Annotated[
    str | None, typer.Option(help="clean, output, input or shared; default: as trained.", show_default=False)
]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Linear layers in eight-bit numbers, on GPUs from Hopper on.")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed, prompts and walk give the same videos.")]


@app.command(
    cls=Once,
    epilog=_examples(
        "hiar run                   # the default experiment, in this folder",
        "hiar run smoke             # the whole chain in two minutes, in runs/smoke/",
        "hiar run smoke --dry-run   # which stages would run, and why",
    ),
)
def run(
    experiment: Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which stages would run, and why.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, even those that are up to date.")] = False,
) -> None:
    """Run an experiment and print its comparison.

    Runs every stage whose parameters, code or inputs have changed, in parallel as cores allow; an interrupted run is
    taken up where it stopped. No server is needed; set PREFECT_API_URL to report to one.
    """
    alone("hiar run")

    from flows.command import run_experiment

    raise typer.Exit(run_experiment(Path(), experiment, dry_run=dry_run, force=force))


@app.command(
    cls=Once,
    epilog=_examples(
        "hiar stage teacher --seed 0",
        "hiar stage distill --seed 0 --variant hiar",
        "hiar stage sample --seed 0 --model init --variant self-forcing",
        "hiar stage teacher --seed 0 --restart-from artifacts/seed-0/teacher.aside-1.partial",
    ),
)
def stage(
    name: Annotated[str, typer.Argument(help="codec, teacher, pairs, init, distill, sample, score or report.")],
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of the run; for all stages but score, report.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="A name of `variants` in params.yaml (distill, sample).")] = None,
    model: Annotated[str | None, typer.Option(help="What is sampled: teacher, init or distill.")] = None,
    restart_from: Annotated[
        Path | None,
        typer.Option(help="Go on from the state in this folder, which a run with other settings left unfinished."),
    ] = None,
) -> None:
    """Run one stage in this folder; what dvc.yaml calls.

    It reads params.yaml and what the stages before it left, writes artifacts/, metrics/ and curves/, and goes on where
    it was interrupted. `dvc repro STAGE` runs the stages before it too.
    """
    needed = STAGES.get(name)
    if needed is None:
        raise UserError(f"stage '{name}': no such stage; known: {', '.join(STAGES)}")
    if name == "sample" and model == "teacher":
        needed = needed - {"variant"}
    given = {"seed": seed, "model": model, "variant": variant, "restart-from": restart_from}
    for option, value in given.items():
        if option in needed - {"restart-from"} and value is None:
            raise UserError(f"--{option}: is missing; stage {name} needs it")
        if option not in needed and value is not None:
            raise UserError(f"--{option} = {value}: stage {name} takes no such option; leave it out")
    if model not in (None, "teacher", "init", "distill"):
        raise UserError(f"--model = {model}: is not a model that is sampled; give teacher, init or distill")

    alone("a stage")

    from hiar.parameters import load_params

    params = load_params(Path("params.yaml"))
    if variant is not None:
        params.variant(variant)
    run_stage = import_module(f"hiar.stages.{name}").run
    run_stage(params, Path(), **{option.replace("-", "_"): given[option] for option in STAGES[name]})


@app.command(
    cls=Once,
    epilog=_examples(
        'hiar sample --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --frames 60 --out out',
        "hiar sample --checkpoint artifacts/seed-0/init --prompts prompts.txt --frames 300 --order diagonal \\",
        "    --context output --seed 7 --out out --save-latents",
    ),
)
def sample(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a teacher, an init or a distilled student.")],
    frames: Annotated[
        int, typer.Option(min=1, max=MOST_FRAMES, help="Latent frames a video; a multiple of the checkpoint's block.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the videos, one NAME.mp4 a prompt; replaced when whole.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A UTF-8 text file, one prompt a line.")] = None,
    order: Order = None,
    context: Context = None,
    seed: Seed = 0,
    save_latents: Annotated[bool, typer.Option("--save-latents", help="Write latents.safetensors too.")] = False,
    fp8: Fp8 = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Share the steps among this many processes, at most one a step; one more decodes. Default: one "
            "process for all.",
            show_default=False,
        ),
    ] = None,
    stall_seconds: Annotated[
        float, typer.Option(help="With --processes: end all when one is silent for so long, 1 to 86400.")
    ] = 60.0,
) -> None:
    """Generate videos from prompts with a checkpoint.

    Under torchrun each process takes its place in the pipeline: the last one decodes, the others share the steps.
    """
    walk = walk_of(order, context)
    texts = prompts_of(prompt, prompts)
    stall_seconds = stall_of(stall_seconds)
    # Read when torch is loaded: what goes wrong between processes is told once, by us, without torch's stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

    from hiar.io.artifacts import check_folder
    from hiar.io.ranks import launch, launched

    if not launched():
        check_folder("--out", out, "samples")
    request = (checkpoint, texts, frames, *walk, seed, out, save_latents, fp8)
    if launched():
        from hiar.stages.pipelined import sample_on_rank

        sample_on_rank(*request, stall_seconds=stall_seconds)
    elif processes is not None:
        from hiar.stages.pipelined import plan_processes

        plan_processes(checkpoint, *walk, processes)
        names = [f"process {rank} of {processes}" for rank in range(processes)] + ["the process that decodes"]
        launch([sys.executable, "-m", "hiar", *sys.argv[1:]], names)
    else:
        from hiar.stages.sample import sample_prompts

        sample_prompts(*request)


@app.command(
    cls=Once,
    epilog=_examples(
        'hiar stream --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --out - | ffplay -',
        'hiar stream --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --frames 600 \\',
        '    --change 300="a blue disc moves" --out video.mp4',
    ),
)
def stream(
    checkpoint: Annotated[Path, typer.Option(help="Folder of an init or a distilled student.")],
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    out: Annotated[str, typer.Option(help="An mp4 file, replaced with the first block; -: the standard output.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRAME=TEXT",
            help="Another prompt from a frame on, a multiple of the checkpoint's block. May be given again.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_FRAMES,
            help="A multiple of the checkpoint's block; default: until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    order: Order = None,
    context: Context = None,
    seed: Seed = 0,
    fp8: Fp8 = False,
) -> None:
    """Generate a video for as long as you like, and watch it meanwhile.

    Each block is written as soon as it is clean. Memory and speed stay what they are, however long it gets. It shows
    what `hiar sample` makes of this prompt and seed.
    """
    walk = walk_of(order, context)
    (text,) = prompts_of(prompt, None)
    target = output_of("--out", out)
    if is_terminal(target):
        raise UserError(f"--out = {out}: is a terminal; name a file, or append a reader, such as | ffplay -")

    alone("hiar stream")

    from hiar.stages.stream import stream as write_stream

    write_stream(checkpoint, text, change or [], frames, *walk, seed, fp8, target)


@app.command(cls=Once, epilog=_examples("hiar score out --out score.json", "hiar score out --out - | jq .metrics.good"))
def score(
    folder: Annotated[Path, typer.Argument(help="Folder of mp4 videos, with a caption a line in captions.txt.")],
    out: Annotated[str, typer.Option(help="JSON file for the figures: mean, standard error and count; -: stdout.")],
) -> None:
    """Score videos of the built-in world.

    How well they show what was asked, how much they drift, how they move.
    """
    alone("hiar score")
    target = output_of("--out", out)

    from hiar.stages.score import score_folder

    score_folder(folder, target)


@config.command("show", epilog=_examples("hiar config show smoke"))
def config_show(experiment: Experiment = None) -> None:
    """Print the parameters of an experiment, overrides merged in."""
    import yaml

    from hiar.workspace import experiment_params, experiment_tree

    experiment_params(Path(), experiment)
    print(yaml.safe_dump(experiment_tree(Path(), experiment), sort_keys=False), end="")


@config.command("check", epilog=_examples("hiar config check context-ablation"))
def config_check(experiment: Experiment = None) -> None:
    """Check the parameters of an experiment.

    Names, types, ranges, and whether they fit together.
    """
    from hiar.workspace import experiment_params

    params = experiment_params(Path(), experiment)
    students = len(params.compare.init) + len(params.compare.distill)
    print(f"{experiment or 'params.yaml'}: valid; {len(params.seeds)} seed(s), {students} students compared")


def main() -> NoReturn:
    """Run the command line and exit as the module says."""
    try:
        with writing(Path("output")):  # also where a library writes: a full disk is the user's to mend
            code = typer.main.get_command(app).main(sys.argv[1:] or ["--help"], standalone_mode=False)
            _flush()
    except UserError as error:
        code = _fail(str(error))
    except RunFailed as error:
        code = _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        code = _fail(f"{error.format_message().rstrip('.')}; see `hiar --help`")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        line = memory_line(error)
        if line is None:
            raise
        code = _fail(line)
    if code == INTERRUPTED:
        goes_on = sys.argv[1:2] != ["stream"]
        print("interrupted" + "; the same command goes on from here" * goes_on, file=sys.stderr)
    sys.exit(code or 0)


def _flush() -> None:
    """Write what is still kept back of the output; what cannot be is dropped, else Python tries again as it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough; typer ends so where it meets this first
            sys.exit(1)
        raise


def _fail(message: str, code: int = 2) -> int:
    line = " ".join(message.split())
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(line, encoding="utf-8", errors="backslashreplace")
    else:
        print(f"error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
