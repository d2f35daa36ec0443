"""The paper's tables as data, and verdicts on its claims, by a rule written down before anything was run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from hiar.config import Section
from hiar.errors import UserError, require, suggest
from hiar.parameters import explain, read_yaml
from hiar.statistics.intervals import Interval
from hiar.statistics.paired import Scores, differences, estimate

TABLES = Path("experiments", "paper", "tables.yaml")
SEEDS = 3  # fewest training seeds to decide a claim

Verdict = Literal["holds", "fails", "undecided"]
Direction = Literal["higher", "lower"]


class Column(NamedTuple):
    """A metric of ours and the figure in the paper that it stands for."""

    metric: str
    better: Direction
    stands_for: str
    paper_better: Direction


class Claim(NamedTuple):
    """The claim that a metric is higher or lower for one contender than for another."""

    says: str
    metric: str
    of: str
    than: str
    direction: Direction


class PaperRow(Section):
    """A row of the paper's table and our contender for it; without one, what is lacking.

    beside: by world, the file of experiments/ that lies over the table's experiment, if the contender is from that one.
    """

    name: str
    contender: str | None
    beside: dict[str, str] | None = None
    lacks: str | None = None
    paper: dict[str, float]

    @model_validator(mode="after")
    def _check(self) -> Self:
        require((self.contender is None) == (self.lacks is not None), "lacks", self.lacks, "give it or a contender")
        return self


class PaperTable(NamedTuple):
    """A table of the paper in our metrics, and its claims. ``unmeasured``: figures for which we have no metric."""

    title: str
    columns: list[Column]
    unmeasured: list[str]
    rows: list[PaperRow]
    claims: list[Claim]


class _Measure(Section):
    metric: str
    better: Direction


class _Claim(Section):
    says: str
    figure: str
    of: str
    than: str
    direction: Annotated[Direction, Field(alias="is")]


class _Table(Section):
    title: str
    columns: list[str]
    rows: list[PaperRow]
    claims: list[_Claim]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for row in self.rows:
            names = ", ".join(self.columns)
            require(row.paper.keys() == {*self.columns}, f"rows.{row.name}.paper", [*row.paper], f"give {names}")
        contenders = [row.contender for row in self.rows if row.contender and not row.beside]
        for claim in self.claims:
            field = f"claims.{claim.says}"
            known = claim.figure in self.columns
            require(known, f"{field}.figure", claim.figure, suggest(claim.figure, self.columns))
            for name in (claim.of, claim.than):
                require(name in contenders, field, name, f"is not in any row; {suggest(name, contenders)}")
        return self


class _Tables(Section):
    better: dict[str, Direction]
    measures: dict[str, dict[str, _Measure]]
    tables: dict[str, _Table]

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [(f"measures.{world}", list(measures)) for world, measures in self.measures.items()]
        named += [(f"tables.{name}.columns", table.columns) for name, table in self.tables.items()]
        for field, figures in named:
            for figure in figures:
                require(figure in self.better, field, figure, suggest(figure, self.better))
        return self


def read_table(path: Path, name: str, world: str) -> PaperTable:
    """The table of that name, in the metrics of a kind of world.

    Raises UserError when there is no such table, there are no metrics for that world, or the file is not valid.
    """
    try:
        said = _Tables.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, _Tables)}") from None
    if name not in said.tables:
        raise UserError(f"{path}: holds no table '{name}'; {suggest(name, said.tables)}")
    if world not in said.measures:
        raise UserError(f"{path}: measures: has no entry for a world of kind '{world}'; add its metrics")
    table, measures = said.tables[name], said.measures[world]
    return PaperTable(
        title=table.title,
        columns=[
            Column(measures[figure].metric, measures[figure].better, figure, said.better[figure])
            for figure in table.columns
            if figure in measures
        ],
        unmeasured=[figure for figure in table.columns if figure not in measures],
        rows=table.rows,
        claims=[
            _claim(one, measures[one.figure], said.better[one.figure]) for one in table.claims if one.figure in measures
        ],
    )


def _claim(said: _Claim, measure: _Measure, better: Direction) -> Claim:
    """The claim in our metric, whose better direction may be the opposite of that of the paper's figure."""
    other: Direction = "lower" if said.direction == "higher" else "higher"
    direction = said.direction if measure.better == better else other
    return Claim(said.says, measure.metric, said.of, said.than, direction)


def judged(scores: Scores, claim: Claim) -> tuple[Verdict, float, Interval | None, int]:
    """A claim's verdict, the difference that it is about, its interval over training seeds, and their number."""
    found = estimate(differences(scores, claim.of, claim.than, claim.metric))
    return verdict(found.training, found.seeds, claim.direction), found.mean, found.training, len(found.seeds)


def verdict(interval: Interval | None, seeds: Mapping[int, float], direction: Direction) -> Verdict:
    """By where the interval of the seeds' mean differences lies: on the claimed side of 0, on the other, or neither."""
    if interval is None or len(seeds) < SEEDS or interval.sign == 0:
        return "undecided"
    return "holds" if (interval.sign > 0) == (direction == "higher") else "fails"
