"""Our figures beside the paper's, each with its interval, both rank orders, and a verdict on each claim."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hiar.report.page import fill
from hiar.report.tables import decimals
from hiar.statistics.claims import Claim, Column, PaperTable, Verdict, judged
from hiar.statistics.intervals import Interval
from hiar.statistics.paired import Estimate, Scores, estimate, values_of

NOTE = (
    "Ours: the mean with its 95 % t interval, over training seeds where there are several, else over videos. Beside it "
    "the paper's figure for what the metric stands for. Where the two are different measures, as all in the built-in "
    "world are, only their ranks among the rows that both have can be compared. A claim holds if the interval of the "
    "training seeds' mean paired differences (at least three seeds) lies on the claimed side of 0, fails if it lies on "
    "the other side, and is undecided otherwise."
)


@dataclass(frozen=True)
class Figure:
    """One metric of one row. ours: None if there is no such contender; ranks: None for such a row."""

    ours: Estimate | None
    paper: float
    our_rank: int | None = None
    paper_rank: int | None = None

    @property
    def interval(self) -> Interval | None:
        """Over training seeds where there are several, else over videos."""
        return None if self.ours is None else self.ours.training or self.ours.videos


@dataclass(frozen=True)
class Line:
    name: str
    lacks: str | None
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Judgement:
    claim: Claim
    verdict: Verdict
    difference: float
    interval: Interval | None
    seeds: int


@dataclass(frozen=True)
class Beside:
    """A table of the paper beside ours. ``unmeasured``: the paper's metrics for which our videos were not scored."""

    experiment: str
    title: str
    facts: Sequence[tuple[str, str]]
    columns: Sequence[Column]
    unmeasured: Sequence[str]
    lines: Sequence[Line]
    claims: Sequence[Judgement]


def beside(experiment: str, table: PaperTable, scores: Scores, facts: Sequence[tuple[str, str]]) -> Beside:
    """Our figures in the paper's table.

    Columns without scores are left out and named in ``unmeasured``; claims about them are left out. Raises UserError
    for a contender without scores.
    """
    scored = {name for videos in scores.values() for metrics in videos.values() for name in metrics}
    columns = [column for column in table.columns if column.metric in scored]
    names = [row.contender for row in table.rows]
    found = [
        [None if name is None else estimate(values_of(scores, name, column.metric)) for name in names]
        for column in columns
    ]
    ranked = [
        _ranked(column, ours, [row.paper[column.stands_for] for row in table.rows])
        for column, ours in zip(columns, found, strict=True)
    ]
    return Beside(
        experiment=experiment,
        title=table.title,
        facts=facts,
        columns=columns,
        unmeasured=[*(one.stands_for for one in table.columns if one not in columns), *table.unmeasured],
        lines=[
            Line(row.name, row.lacks, [figures[place] for figures in ranked]) for place, row in enumerate(table.rows)
        ],
        claims=[Judgement(claim, *judged(scores, claim)) for claim in table.claims if claim.metric in scored],
    )


def _ranked(column: Column, ours: Sequence[Estimate | None], paper: Sequence[float]) -> list[Figure]:
    both = {place: one.mean for place, one in enumerate(ours) if one is not None}
    our_ranks = _ranks(both, column.better)
    paper_ranks = _ranks({place: paper[place] for place in both}, column.paper_better)
    return [
        Figure(one, figure, our_ranks.get(place), paper_ranks.get(place))
        for place, (one, figure) in enumerate(zip(ours, paper, strict=True))
    ]


def _ranks(values: Mapping[int, float], better: str) -> dict[int, int]:
    """Ranks from 1, the best; equal values share the better rank."""
    sign = -1 if better == "higher" else 1
    return {place: 1 + sum(sign * other < sign * value for other in values.values()) for place, value in values.items()}


def as_markdown(tables: Sequence[Beside]) -> str:
    """Headings, tables and verdicts in GitHub's Markdown."""
    parts = []
    for table in tables:
        facts = " ".join(f"{name}: {value}." for name, value in table.facts)
        heads = [head for one in table.columns for head in (f"{one.metric}, ours", f"{one.stands_for}, paper", "ranks")]
        rows = [[line.name, *(cell for one in line.figures for cell in _cells(one))] for line in table.lines]
        claims = [
            [
                one.claim.says,
                f"{one.claim.metric}: {_interval(one.difference, one.interval)}",
                str(one.seeds),
                one.verdict,
            ]
            for one in table.claims
        ]
        parts += [f"## {table.title}", f"Experiment `{table.experiment}`. {facts}", _markdown(["", *heads], rows)]
        parts += [f"Not trained here: {line.name}, which needs {line.lacks}." for line in table.lines if line.lacks]
        parts += [f"Not measured here: {', '.join(table.unmeasured)}."] if table.unmeasured else []
        parts += [_markdown(["Claim", "Difference, 95 % interval over seeds", "Seeds", "Verdict"], claims)]
    return "\n\n".join([*parts, NOTE, ""])


def figures_csv(tables: Sequence[Beside]) -> str:
    """CSV with one line per figure."""
    heads = ["experiment", "row", "metric", "ours", "low", "high", "seeds", "stands_for", "paper", "rank", "paper_rank"]
    lines: list[list[object]] = []
    for table in tables:
        for line in table.lines:
            for column, one in zip(table.columns, line.figures, strict=True):
                ours = [one.ours.mean, *_ends(one.interval), len(one.ours.seeds)] if one.ours else [None] * 4
                lines.append([table.experiment, line.name, column.metric, *map(_number, ours)])
                lines[-1] += [column.stands_for, one.paper, one.our_rank, one.paper_rank]
    return _csv(heads, lines)


def claims_csv(tables: Sequence[Beside]) -> str:
    """CSV with one line per claim."""
    heads = ["experiment", "claim", "metric", "of", "than", "is", "difference", "low", "high", "seeds", "verdict"]
    lines: list[list[object]] = []
    for table in tables:
        for one in table.claims:
            claim, figures = one.claim, map(_number, (one.difference, *_ends(one.interval)))
            lines.append([table.experiment, claim.says, claim.metric, claim.of, claim.than, claim.direction])
            lines[-1] += [*figures, str(one.seeds), one.verdict]
    return _csv(heads, lines)


def as_html(tables: Sequence[Beside]) -> str:
    """An HTML page that needs no network. All text is escaped."""
    return fill("tables.html.jinja", {"interval": _interval}, tables=tables, note=NOTE)


def _cells(figure: Figure) -> list[str]:
    ours = "-" if figure.ours is None else _interval(figure.ours.mean, figure.interval)
    ranks = "" if figure.our_rank is None else f"{figure.our_rank} / {figure.paper_rank}"
    return [ours, f"{figure.paper:.3f}", ranks]


def _interval(mean: float, interval: Interval | None) -> str:
    places = decimals(mean) + 1
    return f"{mean:.{places}f}" + (f" [{interval.low:.{places}f}, {interval.high:.{places}f}]" if interval else "")


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _csv(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
