"""Commands on VBench, the official package in its own environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import app, examples
from hiar.io.launcher import alone
from hiar.options import Once

vbench = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Score videos with VBench's own package."
    "\n\nStart with `make vbench` (builds its environment) and `hiar vbench doctor`; see docs/vbench.md.",
)
app.add_typer(vbench, name="vbench")

Place = Annotated[
    Path | None,
    typer.Option(
        "--environment", help="What `make vbench` built; default: $HIAR_VBENCH or .venv-vbench.", show_default=False
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Folder of weights; default: $VBENCH_CACHE_DIR or ~/.cache/vbench.", show_default=False),
]
Names = Annotated[list[str] | None, typer.Argument(help="Dimensions; default: all.", show_default=False)]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", "-d", help="One of the sixteen; may be repeated. Default: all that run here."),
]


@vbench.command(cls=Once, epilog=examples("hiar vbench doctor", "hiar vbench doctor human_action drift"))
def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Dimensions, NAME_across_clips or drift; default: all.", show_default=False),
    ] = None,
    environment: Place = None,
    weights: Weights = None,
) -> None:
    """Say which dimensions run here, and which files are missing.

    Of a missing file it says where it belongs, and its size and hash if published. Two dimensions need further files
    to compare the clips of long videos (NAME_across_clips); drift is the profile of `hiar score`, whose networks run in
    VBench's environment. Only looks: nothing is loaded, fetched or written.
    """
    from hiar.vbench.doctor import NEEDS, examine, known_names
    from hiar.vbench.environment import default_folder, find_environment
    from hiar.vbench.weights import weights_folder

    names = known_names(names or NEEDS)
    findings = examine(find_environment(environment or default_folder()), weights or weights_folder(), names)
    for finding in findings:
        print(f"{finding.dimension:34} {'cannot run' if finding.problems else 'runs'}")
        for problem in finding.problems:
            print(f"    {problem}")
    print(f"{sum(not finding.problems for finding in findings)} of {len(findings)} run here")


@vbench.command(
    cls=Once,
    epilog=examples(
        "hiar vbench fetch --dry-run",
        "hiar vbench fetch clip_model/ViT-B-32.pt",
        "hiar vbench fetch --approve amt_model/amt-s.pth",
    ),
)
def fetch(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files as doctor names them; default: all that are missing.")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Fetch nothing: trust the files that are there, by their hashes.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Also fetch files that are there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be fetched.")] = False,
    environment: Place = None,
    weights: Weights = None,
) -> None:
    """Fetch weights from their publishers, or approve local files.

    Most are pickles, which can run code: each is checked by its published SHA-256. Where none is published, the file is
    not loaded until you approve it; its hash is then noted, and no other file is loaded in its place.
    """
    from tempfile import TemporaryDirectory

    from hiar.errors import UserError
    from hiar.io.files import writing
    from hiar.vbench.environment import default_folder, find_environment
    from hiar.vbench.fetch import fetch as fetch_file
    from hiar.vbench.weights import WEIGHTS, inspect, known_weight, weights_folder
    from hiar.vbench.weights import approve as approve_file

    place = weights or weights_folder()
    names = [known_weight(name) for name in files or WEIGHTS]
    if approve:
        if not files:
            raise UserError("--approve: no file is named; name each that you trust")
        for name in names:
            print(f"{name}: approved, SHA-256 {approve_file(place, name)}")
        return
    missing = [name for name in names if replace or not (place / name).is_file()]
    if dry_run:
        for name in missing:
            print(f"{place / name} from {WEIGHTS[name].url}")
        return
    found = find_environment(environment or default_folder())
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        archives = TemporaryDirectory(prefix=".archives-", dir=place)
    with archives:
        for name in missing:
            fetch_file(place, name, found, Path(archives.name))
    for name in names:
        held = inspect(place, name)
        print(held.problem or f"{held.path}: is there, SHA-256 {held.sha256}")


@vbench.command(
    cls=Once, epilog=examples("hiar vbench prompts > prompts.txt", "hiar vbench prompts human_action --names")
)
def prompts(
    dimensions: Names = None,
    names: Annotated[bool, typer.Option("--names", help="VBench's file names instead of the prompts.")] = False,
    environment: Place = None,
) -> None:
    """Print the suite's prompts, one line per video to generate.

    A prompt has five videos, twenty-five for temporal_flickering. The lines are the input of `hiar sample --prompts`.
    Videos generated with --extended keep the short prompts as captions.
    """
    from hiar.vbench.dimensions import DIMENSIONS, known_dimensions
    from hiar.vbench.environment import default_folder, find_environment
    from hiar.vbench.suite import file_name, prompt_lines, read_suite, wanted

    chosen = known_dimensions(dimensions or DIMENSIONS)
    counts = wanted(read_suite(find_environment(environment or default_folder()).suite), chosen)
    if names:
        lines = [file_name(prompt, sample) for prompt, count in counts.items() for sample in range(count)]
    else:
        lines = list(prompt_lines(counts))
    for line in lines:
        print(line)


@vbench.command(
    cls=Once,
    epilog=examples(
        "hiar vbench score samples/hiar --out scores/hiar",
        "hiar vbench score samples/hiar --out scores/hiar -d temporal_flickering -d motion_smoothness",
        "hiar vbench score samples/hiar --out scores/hiar --device cuda:0 --device cuda:1",
    ),
)
def score(
    videos: Annotated[Path, typer.Argument(help="Folder of mp4 files.")],
    out: Annotated[Path, typer.Option(help="Folder of results; those that are there and still valid are reused.")],
    dimension: Dimensions = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="The videos' prompts: one per line, or JSON {file: prompt}. Default: captions.txt, else VBench's "
            "file names.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="vbench or vbench-long; default: vbench-long from 5 s on.", show_default=False),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda or cuda:N (default: cpu); repeat it to score as many dimensions at once.",
            show_default=False,
        ),
    ] = None,
    within_clips: Annotated[
        bool,
        typer.Option(
            "--within-clips",
            help="Score long videos' subject and background consistency only within clips: needs no DreamSim, but is "
            "not comparable to published figures.",
        ),
    ] = False,
    static_filter: Annotated[
        bool,
        typer.Option(
            "--static-filter",
            help="Of temporal_flickering's 25 videos per prompt score only 5 that VBench's filter finds static.",
        ),
    ] = False,
    extended: Annotated[
        bool | None,
        typer.Option(
            "--extended/--short",
            help="Which prompts the videos were generated from, if their folder does not say; noted in the result.",
            show_default=False,
        ),
    ] = None,
    environment: Place = None,
    weights: Weights = None,
) -> None:
    """Score a folder of videos with VBench's own code.

    Prints each dimension's value and the totals. Prompts come from captions.txt for our videos, from VBench's file
    names for others. Values are kept by video in --out; after an interruption the same command resumes.
    """
    from hiar.errors import RunFailed
    from hiar.vbench.leaderboard import read_results
    from hiar.vbench.runner import score_folder

    alone("hiar vbench score")
    made = None if extended is None else "extended" if extended else "short"
    scores = score_folder(
        videos,
        dimension,
        out,
        prompts=prompts,
        protocol=protocol,
        devices=device or ["cpu"],
        generated=made,
        within_clips=within_clips,
        static_filter=static_filter,
        environment=environment,
        weights=weights,
    )
    if scores.values:
        _show({name: result["value"] for name, result in read_results(out).items()}, strict=False)
    if scores.failed:
        raise RunFailed(f"{', '.join(scores.failed)}: no value; {next(iter(scores.failed.values()))}")


@vbench.command(
    cls=Once,
    epilog=examples("hiar vbench totals scores/hiar", "hiar vbench totals scores/hiar --strict-leaderboard hiar.zip"),
)
def totals(
    out: Annotated[Path, typer.Argument(help="Folder of results.")],
    strict_leaderboard: Annotated[
        Path | None,
        typer.Option(
            metavar="ZIP",
            help="Write the leaderboard's archive, and count as its script does: a missing dimension is a raw 0.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the Quality, Semantic and Total scores of results.

    A total stays open while a dimension is missing.
    """
    from hiar.vbench.leaderboard import read_results, write_archive

    results = read_results(out)
    if strict_leaderboard is not None:
        write_archive(strict_leaderboard, results)
    _show({name: result["value"] for name, result in results.items()}, strict=strict_leaderboard is not None)


def _show(values: dict[str, float], strict: bool) -> None:
    from hiar.vbench.totals import TOTALS
    from hiar.vbench.totals import totals as totals_of

    for name, value in values.items():
        print(f"{name:23} {value:.4f}")
    found = totals_of(values, strict)
    for name in TOTALS:
        figure = getattr(found, name)
        print(f"{name:23} {'open' if figure is None else f'{figure:.4f}'}")
    if found.missing:
        print(f"missing{', counted as 0' * strict}: {', '.join(found.missing)}")
