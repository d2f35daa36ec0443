"""The command line. Everything heavy is imported inside the commands: `--help` answers at once.

A mistake of the user is one line on the standard error and exit code 2, a failed run its stage's exit code, Ctrl-C 130.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn, cast, get_args

import typer

from hiar.errors import UserError
from hiar.io.files import writing

# What each stage is told on the command line.
STAGES = {
    "codec": {"seed"},
    "teacher": {"seed"},
    "pairs": {"seed"},
    "init": {"seed"},
    "distill": {"seed", "variant"},
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


@app.command(
    epilog=_examples(
        "hiar run                   # the default experiment, in this folder",
        "hiar run smoke             # the whole chain in two minutes, in runs/smoke/",
        "hiar run smoke --dry-run   # which stages would run, and why",
    )
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
    from flows.command import run_experiment

    raise typer.Exit(run_experiment(Path(), experiment, dry_run=dry_run, force=force))


@app.command(
    epilog=_examples(
        "hiar stage teacher --seed 0",
        "hiar stage distill --seed 0 --variant hiar",
        "hiar stage sample --seed 0 --model init --variant self-forcing",
    )
)
def stage(
    name: Annotated[str, typer.Argument(help="codec, teacher, pairs, init, distill, sample, score or report.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run; for all stages but score, report.")] = None,
    variant: Annotated[str | None, typer.Option(help="A name of `variants` in params.yaml (distill, sample).")] = None,
    model: Annotated[str | None, typer.Option(help="What is sampled: teacher, init or distill.")] = None,
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
    for option, value in {"seed": seed, "variant": variant, "model": model}.items():
        if option in needed and value is None:
            raise UserError(f"--{option}: is missing; stage {name} needs it")
        if option not in needed and value is not None:
            raise UserError(f"--{option} = {value}: stage {name} takes no such option; leave it out")
    if model not in (None, "teacher", "init", "distill"):
        raise UserError(f"--model = {model}: is not a model that is sampled; give teacher, init or distill")

    from hiar.parameters import load_params

    params = load_params(Path("params.yaml"))
    if variant is not None:
        params.variant(variant)
    given = {"seed": seed, "model": model, "variant": variant}
    run_stage = import_module(f"hiar.stages.{name}").run
    run_stage(params, Path(), **{option: given[option] for option in given if option in STAGES[name]})


@app.command(
    epilog=_examples(
        'hiar sample --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --frames 60 --out out',
        "hiar sample --checkpoint artifacts/seed-0/init --prompts prompts.txt --frames 300 --order diagonal \\",
        "    --context output --seed 7 --out out --save-latents",
    )
)
def sample(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a teacher, an init or a distilled student.")],
    frames: Annotated[int, typer.Option(min=1, help="Latent frames a video; a multiple of the checkpoint's block.")],
    out: Annotated[Path, typer.Option(help="Folder for the videos, one NAME.mp4 a prompt; replaced when whole.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A UTF-8 text file, one prompt a line.")] = None,
    order: Annotated[
        str | None, typer.Option(help="block_first, step_first or diagonal; default: as trained.", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="clean, output or input; default: as trained.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, prompts and walk give the same videos.")] = 0,
    save_latents: Annotated[bool, typer.Option("--save-latents", help="Write latents.safetensors too.")] = False,
) -> None:
    """Generate videos from prompts with a checkpoint."""
    from hiar.config import Context, Order

    walk_order = cast("Order | None", _choice("--order", order, get_args(Order)))
    walk_context = cast("Context | None", _choice("--context", context, get_args(Context)))
    texts = _prompts(prompt, prompts)

    from hiar.stages.sample import sample_prompts

    sample_prompts(checkpoint, texts, frames, walk_order, walk_context, seed, out, save_latents)


@app.command(epilog=_examples("hiar score out --out out/score.json"))
def score(
    folder: Annotated[Path, typer.Argument(help="Folder of mp4 videos, with a caption a line in captions.txt.")],
    out: Annotated[Path, typer.Option(help="JSON file for the figures: mean, standard error and count.")],
) -> None:
    """Score videos of the built-in world.

    How well they show what was asked, how much they drift, how they move.
    """
    from hiar.stages.score import score_folder

    score_folder(folder, out)


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
    except UserError as error:
        code = _fail(str(error))
    except typer.TyperException as error:
        code = _fail(f"{error.format_message().rstrip('.')}; see `hiar --help`")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(code or 0)


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _choice(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} = {value}: is none of {', '.join(choices)}; choose one of them")
    return value


def _prompts(prompt: str | None, path: Path | None) -> list[str]:
    """The prompts of ``--prompt`` or ``--prompts`` (one a line, blank lines left out). Raises UserError for none."""
    if prompt is not None and path is None:
        if not prompt.strip():
            raise UserError(f"--prompt = {prompt!r}: is empty; describe a video")
        return [prompt.strip()]
    if path is None or prompt is not None:
        raise UserError("--prompt, --prompts: give exactly one of the two")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; name a text file with one prompt a line") from None
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: byte {error.start} = 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompt; write one a line")
    return prompts


if __name__ == "__main__":
    main()
