"""Commands on experiments: run one, run one of its stages, look at its parameters."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import app, examples
from hiar.errors import UserError
from hiar.io.launcher import alone
from hiar.options import MOST_SEED, Once

# The options of each stage.
STAGES = {
    "codec": {"seed", "restart-from"},
    "teacher": {"seed", "restart-from"},
    "pairs": {"seed"},
    "init": {"seed", "restart-from"},
    "distill": {"seed", "variant", "restart-from"},
    "sample": {"seed", "model", "variant", "walk"},
    "vbench": {"seed", "dimension"},
    "score": set(),
    "report": set(),
}

config = typer.Typer(help="Show or check the parameters of an experiment.")
app.add_typer(config, name="config")

Experiment = Annotated[
    str | None,
    typer.Argument(
        help="A file in experiments/, without .yaml, or several as ONE+OTHER, where later files override earlier ones; "
        "default: params.yaml as it is.",
        show_default=False,
    ),
]


@app.command(
    cls=Once,
    epilog=examples(
        "hiar run                   # the default experiment, in this folder",
        "hiar run smoke             # the whole chain in two minutes, in runs/smoke/",
        "hiar run smoke --dry-run   # which stages would run, why, and what comes from the cache",
    ),
)
def run(
    experiment: Experiment = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list which stages would run, why, and what comes from the cache.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, even those that are up to date.")] = False,
) -> None:
    """Run an experiment and print its comparison.

    Runs every stage whose parameters, code or inputs have changed, in parallel as cores allow; resumes an interrupted
    run. An experiment may name others to run and compare with it, as inits does. No server is needed; set
    PREFECT_API_URL to report to one.
    """
    alone("hiar run")

    from flows.command import run_experiment

    raise typer.Exit(run_experiment(Path(), experiment, dry_run=dry_run, force=force))


@app.command(
    cls=Once,
    epilog=examples(
        "hiar tables table1    # into runs/table1/reports/: tables.html, .md, .csv, claims.csv",
        "hiar tables table1 table2 table3 --out all    # one page with the three",
    ),
)
def tables(
    experiments: Annotated[list[str], typer.Argument(help="Experiments that were run for a table (report.table).")],
    out: Annotated[
        Path | None,
        typer.Option(help="One folder for all tables; default: each experiment's reports/."),
    ] = None,
) -> None:
    """Compare experiments with the paper's tables.

    Prints a verdict per claim, and writes our figures beside the paper's, with intervals and both rank orders. Tables,
    claims and the rule for verdicts are in experiments/paper/tables.yaml.
    """
    from hiar.stages.tables import table_of, write_tables
    from hiar.workspace import run_params

    found = {name: table_of(name, partial(run_params, Path()), Path()) for name in dict.fromkeys(experiments)}
    apart = {Path("runs", name, "reports"): [one] for name, one in found.items()}
    groups = {out: [*found.values()]} if out else apart
    for folder, group in groups.items():
        for path in write_tables(group, folder):
            print(path)
    for name, one in found.items():
        for claim in one.claims:
            print(f"{name}: {claim.claim.says}: {claim.verdict}")


@app.command(
    cls=Once,
    epilog=examples(
        "hiar stage teacher --seed 0",
        "hiar stage distill --seed 0 --variant hiar",
        "hiar stage sample --seed 0 --model init --variant self-forcing",
        "hiar stage teacher --seed 0 --restart-from artifacts/seed-0/teacher.aside-1.partial",
    ),
)
def stage(
    name: Annotated[str, typer.Argument(help="codec, teacher, pairs, init, distill, sample, vbench, score or report.")],
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of the run; for all stages except score and report.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="A name of `variants` in params.yaml (distill, sample).")] = None,
    model: Annotated[str | None, typer.Option(help="What to sample: teacher, init, distill or walked.")] = None,
    walk: Annotated[
        str | None, typer.Option(help="With --model walked: the variant that the student of --variant is walked as.")
    ] = None,
    dimension: Annotated[str | None, typer.Option(help="One of VBench's dimensions (vbench).")] = None,
    restart_from: Annotated[
        Path | None,
        typer.Option(help="Resume from the state in this folder, left unfinished by a run with other settings."),
    ] = None,
) -> None:
    """Run one stage in this folder, as dvc.yaml does.

    It reads params.yaml and the outputs of earlier stages, writes artifacts/, metrics/ and curves/, and resumes if it
    was interrupted. `dvc repro STAGE` runs the earlier stages too. teacher, pairs, init, distill and sample run in
    several processes if runtime.processes in params.yaml says so, or under torchrun.
    """
    needed = STAGES.get(name)
    if needed is None:
        raise UserError(f"stage '{name}': no such stage; known: {', '.join(STAGES)}")
    if name == "sample":
        needed = needed - ({"variant"} if model == "teacher" else set()) - (set() if model == "walked" else {"walk"})
    given: dict[str, object] = {"seed": seed, "model": model, "variant": variant, "walk": walk}
    given |= {"dimension": dimension, "restart-from": restart_from}
    for option, value in given.items():
        if option in needed - {"restart-from"} and value is None:
            raise UserError(f"--{option}: is missing; stage {name} needs it")
        if option not in needed and value is not None:
            raise UserError(f"--{option} = {value}: stage {name} has no such option; leave it out")
    if model not in (None, "teacher", "init", "distill", "walked"):
        raise UserError(f"--model = {model}: is not a model that is sampled; give teacher, init, distill or walked")

    # torch reads this when loaded: a failure between processes is reported once, by us, without torch's stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

    from hiar.config import SHARED
    from hiar.io.ranks import launch, launched
    from hiar.parameters import load_params
    from hiar.stages.definition import unchanged
    from hiar.tracking.identity import OF_ALL

    started = name in SHARED and launched()
    if not started:
        alone("a stage")
    params = load_params(Path("params.yaml"))
    if variant is not None:  # checked before any process starts; the stage itself checks --walk
        params.variant(variant)
    processes = params.runtime.processes or 1
    if name in SHARED and processes > 1 and not started:
        names = [f"process {rank} of {processes}" for rank in range(processes)]
        threads = params.runtime.threads if variant is None else params.runtime.variant_threads
        launch([sys.executable, "-m", "hiar", *sys.argv[1:]], names, teller=0, threads=threads)
        return
    run_stage = import_module(f"hiar.stages.{name}").run
    with unchanged(name, params.world.kind, None, Path()) if name in OF_ALL else nullcontext():
        run_stage(params, Path(), **{option.replace("-", "_"): given[option] for option in STAGES[name]})


@app.command(
    cls=Once,
    epilog=examples(
        "hiar plan wan2.1-1.3b --gpus 8             # 80 GB each, unless --memory says otherwise",
        "hiar plan wan2.1-1.3b --memory 141 --stage distill",
    ),
)
def plan(
    experiment: Experiment = None,
    gpus: Annotated[int, typer.Option(min=1, max=4096, help="GPUs that training is sharded over.")] = 1,
    memory: Annotated[float, typer.Option(min=0.1, max=1e6, help="GB per GPU.")] = 80.0,
    stage: Annotated[str | None, typer.Option(help="Only pairs, init, distill or sample.", show_default=False)] = None,
    micro_batch: Annotated[int, typer.Option(min=1, max=4096, help="Samples per GPU at a time.")] = 1,
) -> None:
    """Estimate the GPU memory and disk space that stages need.

    Also says which settings make them fit. Nothing is loaded and no GPU is needed: steps run on tensors without
    storage. Takes half a minute.
    """
    from hiar.memory.networks import open_models
    from hiar.memory.table import STAGES as KNOWN
    from hiar.memory.table import lines
    from hiar.workspace import experiment_params

    if stage not in (None, *KNOWN):
        raise UserError(f"--stage = {stage}: is not planned; give {', '.join(KNOWN)}, or leave it out")
    models = open_models(experiment_params(Path(), experiment))
    for line in lines(models, KNOWN if stage is None else (stage,), micro_batch, gpus, memory * 1e9):
        print(line, flush=True)


@config.command("show", epilog=examples("hiar config show smoke"))
def config_show(experiment: Experiment = None) -> None:
    """Print the parameters of an experiment, overrides merged in."""
    import yaml

    from hiar.workspace import experiment_params, experiment_tree

    experiment_params(Path(), experiment)
    print(yaml.safe_dump(experiment_tree(Path(), experiment), sort_keys=False), end="")


@config.command("check", epilog=examples("hiar config check context-ablation"))
def config_check(experiment: Experiment = None) -> None:
    """Check the parameters of an experiment.

    Names, types, ranges, and whether they fit together.
    """
    from hiar.workspace import experiment_params

    params = experiment_params(Path(), experiment)
    students = len(params.compare.students)
    print(f"{experiment or 'params.yaml'}: valid; {len(params.seeds)} seed(s), {students} students compared")
