"""The report of an experiment: reports/index.html, one file that needs no network, and a contact sheet."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from hiar.config import Params
from hiar.contexts import context_words
from hiar.errors import UserError
from hiar.io.artifacts import Facts, facts, read_manifest
from hiar.io.files import write_json, write_text
from hiar.io.names import video_name
from hiar.io.video import read_mp4, write_png
from hiar.judges.interface import Judge, open_judge
from hiar.metrics.summary import Summary, pool
from hiar.report.columns import METRICS, Metric, drift_columns, good_by_part, vbench_columns
from hiar.report.curves import along_the_video
from hiar.report.differences import PAIRED, difference_tables
from hiar.report.dynamics import dynamics
from hiar.report.front import front, front_legend
from hiar.report.logs import Log, machine_facts, read_logs, stage_logs
from hiar.report.losses import Curve, losses
from hiar.report.page import Clip, Losses, Page, data_uri, render
from hiar.report.series import TRUTH, Series, model_series
from hiar.report.sheet import contact_sheet
from hiar.report.tables import Table, comparison
from hiar.stages.common import Paths, sample_world, write_log
from hiar.stages.comparison import SAMPLES, TEACHER, Contender, contenders, levels_compared, read_captions, read_summary
from hiar.stages.truth import write_true_videos
from hiar.statistics.paired import VIDEOS, Scores, add_wholes, read_scores
from hiar.statistics.validations import Validated, read_validations
from hiar.tracking.stage import tracked
from hiar.worlds.interface import FIRST_CLIP, open_world

SHEET_COLUMNS = 10
TITLE = "Long rollouts, compared"

Figures = dict[str, Summary]


def run(params: Params, workspace: Path) -> None:
    """Write reports/ from samples, metrics, curves and logs of the workspace.

    index.html and contact_sheet.png are for people; run.json tells programs what was run, where, and for how long.

    Raises UserError when samples or metrics are missing or do not belong together; logs and curves may be missing.
    """
    began = time.monotonic()
    seed, world = params.seeds[0], open_world(params.world)
    fps = world.frames_per_second
    models = {_series(params, one): one for one in contenders(params) if one.seed == seed}
    folders = {series: one.samples(workspace) for series, one in models.items()}
    every = [one.samples(workspace) for one in contenders(params)]
    made = [facts(folder, read_manifest(folder, SAMPLES), _Made) for folder in every]
    _check_prompts(params, workspace)
    prompts, wall = _wall(params, workspace, seed, folders)
    first_row = {series: read_mp4(folder / video_name(0, params.sample.videos)) for series, folder in folders.items()}
    seconds = {series: len(video) / fps for series, video in first_row.items()}

    judge = open_judge(params.world, params.score, params.video.block, params.video.block)
    figures = _figures(params, workspace, judge)
    truth = _read(workspace / "metrics" / "world.json")
    students = {series: metrics for series, metrics in figures.items() if models[series].stage != TEACHER}
    references = {series: metrics for series, metrics in figures.items() if series not in students}
    references |= {TRUTH: _pool(truth)} if truth else {}
    columns = [metric for metric in METRICS if metric.key in judge.columns]
    columns += drift_columns(params.score.profiles) + vbench_columns(params.score.vbench)
    scores, levels = read_scores(workspace / VIDEOS), levels_compared(params)
    add_wholes(scores, read_summary(params, workspace))
    pairs = _differences(params, scores, columns)
    # The report's own log is from the run before this one.
    logs = [log for log in read_logs(workspace / "logs") if log["name"] != "report"]

    commits = _commits(made)
    page = Page(
        title=TITLE,
        lead=_lead(params),
        facts=_facts(params, commits, logs),
        seed=seed,
        height=world.height,
        width=world.width,
        training_seconds=world.seconds(params.video.frames),
        longest_seconds=max(seconds.values()),
        columns=[*([TRUTH] if truth else []), *models],
        wall=wall,
        segments=params.score.segments,
        legend=list(models),
        curves=along_the_video(figures, seconds, params.score.segments, judge.courses),
        pooling=_pooling(params),
        tables=[
            comparison("All parts of the videos together", columns, students, references),
            *_by_part(params, judge, students, references),
        ],
        pairing=PAIRED if pairs else "There is no second student to compare with.",
        differences=pairs,
        paper_table=params.report.table is not None,
        front_legend=list(front_legend(levels).values()),
        front=front(columns, scores, levels),
        definitions=[(metric.name, metric.definition) for metric in columns],
        losses=_losses(params, workspace),
        dynamics=dynamics(columns, _validations(params, workspace)),
        stages=stage_logs(logs),
        parameters=yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, default_flow_style=None),
    )
    rows = [(series.name, video) for series, video in first_row.items()]
    html, picture = workspace / "reports" / "index.html", workspace / "reports" / "contact_sheet.png"
    with tracked("report", None, None, params, workspace) as run:
        write_text(html, render(page))
        write_json(html.with_name("run.json"), {"commits": commits, "seeds": params.seeds, "stages": logs})
        write_png(picture, contact_sheet(prompts[0], rows, SHEET_COLUMNS, fps))
        run.artifact(html)
        run.artifact(picture)
    write_log(workspace, "report", params, began, stage="report")


def _check_prompts(params: Params, workspace: Path) -> None:
    """Raise UserError if contenders of a seed have different prompts: their videos would not be paired."""
    for seed in params.seeds:
        prompts = sample_world(params).prompts(seed=seed, first=FIRST_CLIP["sample"], count=params.sample.videos)
        for one in contenders(params):
            folder = one.samples(workspace)
            if one.seed == seed and read_captions(folder) != prompts:
                raise UserError(f"{folder}: its prompts are not those of params.yaml; run its sample stage again")


def _series(params: Params, one: Contender) -> Series:
    walk = None
    if one.stage != TEACHER:
        way = params.variant(one.variant.rpartition("/")[2])
        walk = f"{way.order.replace('_', '-')}, {context_words(way.context, way.level)}"
    return model_series(one.stage, one.variant, walk, list(params.variants))


def _by_part(
    params: Params, judge: Judge, students: Mapping[Series, Figures], references: Mapping[Series, Figures]
) -> list[Table]:
    if "good" not in judge.columns:
        return []
    return [comparison("Good frames, part by part", good_by_part(params.score.segments), students, references)]


def _differences(params: Params, scores: Scores, columns: Sequence[Metric]) -> list[Table]:
    """Every student's paired differences to the reference; none where there is nothing to compare."""
    students = {
        f"{one.stage}/{one.variant}": _series(params, one)
        for one in contenders(params)
        if one.seed == params.seeds[0] and one.stage != TEACHER
    }
    if params.reference is None or len(students) < 2:
        return []
    return difference_tables(columns, scores, students, params.reference)


def _wall(
    params: Params, workspace: Path, seed: int, folders: dict[Series, Path]
) -> tuple[list[str], list[tuple[str, list[Clip]]]]:
    """The first prompts, and for each its clip from the true world and from every model."""
    count = params.report.videos
    names = [video_name(index, params.sample.videos) for index in range(count)]
    with TemporaryDirectory() as scratch:
        prompts, truth = _prompts(params, workspace, seed, count, Path(scratch))
        places = truth | folders
        return prompts, [
            (
                prompt,
                [
                    Clip(data_uri((folder / names[index]).read_bytes()), f"{series.name}: {prompt}")
                    for series, folder in places.items()
                ],
            )
            for index, prompt in enumerate(prompts)
        ]


def _prompts(
    params: Params, workspace: Path, seed: int, count: int, scratch: Path
) -> tuple[list[str], dict[Series, Path]]:
    """The first prompts of the samples, and where the true world's clips of them are, if it has any."""
    world = sample_world(params)
    if world.has_clips:
        return write_true_videos(params, workspace, seed, count, scratch), {TRUTH: scratch}
    return world.prompts(seed=seed, first=FIRST_CLIP["sample"], count=count), {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read; run `hiar stage score` first") from None


def _figures(params: Params, workspace: Path, judge: Judge) -> dict[Series, Figures]:
    """The metrics of every model over its seeds, in the comparison's order."""
    path = workspace / "metrics" / "summary.json"
    seeds: dict[Series, list[dict[str, Any]]] = defaultdict(list)
    also = [*drift_columns(params.score.profiles), *vbench_columns(params.score.vbench)]
    names = [*judge.columns, *(column.key for column in also)]
    for one, row in zip(contenders(params), read_summary(params, workspace), strict=True):
        if lacking := [name for name in names if name not in row["metrics"]]:
            raise UserError(f"{path}: lacks {', '.join(lacking)}; run `hiar stage score` again")
        seeds[_series(params, one)].append(row)
    return {series: _pool(found) for series, found in seeds.items()}


def _pool(rows: list[dict[str, Any]]) -> Figures:
    return {name: pool([row["metrics"][name] for row in rows]) for name in rows[0]["metrics"]}


def _lead(params: Params) -> str:
    world = open_world(params.world)
    trained, rolled = params.video.frames, params.sample.frames
    return (
        f"A teacher, the students initialised from it, and what distillation made of them, on {world.name} "
        f"of {world.width}×{world.height} pixels. Same prompts, same noise; trained on clips of {trained} frames "
        f"({world.seconds(trained):.3g} s), rolled out for {rolled} ({world.seconds(rolled):.3g} s)."
    )


def _pooling(params: Params) -> str:
    seeds = len(params.seeds)
    what = (
        "Mean over videos ± its standard error; n videos. Shaded: the best student's figure and those within two "
        "standard errors of it."
    )
    if seeds == 1:
        return f"{what} There is one training seed: the errors do not say how far another one would land."
    return (
        f"{what} Pooled over {seeds} training seeds: the mean of their means, with the root of their summed squared "
        f"standard errors over {seeds}. That is the error of the videos, not of the training seeds: "
        "metrics/summary.json has each."
    )


class _Code(Facts):
    commit: str
    dirty: bool


class _Made(Facts):
    code: _Code


def _commits(made: list[_Made]) -> list[str]:
    """The commits of the code that made the samples."""
    return sorted({f"{one.code.commit[:10]}{' + changes' if one.code.dirty else ''}" for one in made})


def _facts(params: Params, commits: list[str], logs: list[Log]) -> list[tuple[str, str]]:
    return [
        ("Commit", ", ".join(commits)),
        ("Seeds", ", ".join(map(str, params.seeds))),
        ("Videos a model", str(params.sample.videos)),
        *machine_facts(logs),
    ]


def _validations(params: Params, workspace: Path) -> dict[Series, dict[int, list[Validated]]]:
    """The validations of distilled students during training, by series and seed, where there are any."""
    found: dict[Series, dict[int, list[Validated]]] = {}
    for one in contenders(params):
        taken = read_validations(Paths(workspace, one.seed).distilled(one.variant)) if one.stage == "distill" else []
        if taken:
            found.setdefault(_series(params, one), {})[one.seed] = taken
    return found


def _losses(params: Params, workspace: Path) -> list[Losses]:
    """The training curves, stage by stage."""
    roots = {seed: workspace / "curves" / f"seed-{seed}" for seed in params.seeds}
    found = []
    for stage in ("codec", "teacher", "init"):
        curves = [
            Curve(Series(f"seed {seed}", "", f"c{i}"), root / f"{stage}.csv")
            for i, (seed, root) in enumerate(roots.items())
        ]
        found.append(losses(stage.capitalize(), curves))
    distilled = [one for one in contenders(params) if one.stage == "distill"]
    curves = [Curve(_series(params, one), roots[one.seed] / "distill" / f"{one.variant}.csv") for one in distilled]
    found.append(losses("Distillation", curves))
    return [one for one in found if one is not None]
