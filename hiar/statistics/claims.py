"""The paper's tables as data, and what of its claims holds, by a rule that was written down before anything was run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hiar.config import Section
from hiar.errors import UserError, require, suggest
from hiar.parameters import explain, read_yaml
from hiar.statistics.intervals import Interval
from hiar.statistics.paired import Scores, differences, estimate

TABLES = Path("experiments", "paper", "tables.yaml")
SEEDS = 3  # training seeds without which no claim is decided

Verdict = Literal["holds", "fails", "undecided"]
Direction = Literal["higher", "lower"]


class Column(Section):
    """A metric of ours and the paper's that it stands for."""

    metric: str
    better: Direction
    stands_for: str
    paper_better: Direction


class PaperRow(Section):
    """A row of the paper's table and the contender that is our one; without one, what is lacking for it."""

    name: str
    contender: str | None
    lacks: str | None = None
    paper: dict[str, float]

    @model_validator(mode="after")
    def _check(self) -> Self:
        require((self.contender is None) == (self.lacks is not None), "lacks", self.lacks, "give it or a contender")
        return self


class Claim(Section):
    """That a metric of one contender is higher or lower than that of another."""

    says: str
    metric: str
    of: str
    than: str
    direction: Annotated[Direction, Field(alias="is")]


class PaperTable(Section):
    """A table of the paper's, and the claims that it makes."""

    title: str
    columns: list[Column]
    rows: list[PaperRow]
    claims: list[Claim]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [column.stands_for for column in self.columns]
        for row in self.rows:
            require(row.paper.keys() == {*names}, f"rows.{row.name}.paper", [*row.paper], f"give {', '.join(names)}")
        metrics = [column.metric for column in self.columns]
        contenders = [row.contender for row in self.rows if row.contender]
        for claim in self.claims:
            field = f"claims.{claim.says}"
            require(claim.metric in metrics, f"{field}.metric", claim.metric, suggest(claim.metric, metrics))
            for name in (claim.of, claim.than):
                require(name in contenders, field, name, f"is in no row; {suggest(name, contenders)}")
        return self


class _Tables(Section):
    tables: dict[str, PaperTable]


def read_table(path: Path, name: str) -> PaperTable:
    """The table of that name. Raises UserError when there is none, or the file is not valid."""
    try:
        tables = _Tables.model_validate({"tables": read_yaml(path)}).tables
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, _Tables).removeprefix('tables.')}") from None
    if name not in tables:
        raise UserError(f"{path}: holds no table '{name}'; {suggest(name, tables)}")
    return tables[name]


def judged(scores: Scores, claim: Claim) -> tuple[Verdict, float, Interval | None, int]:
    """A claim's verdict, the difference that it is about, its interval over training seeds, and their number."""
    found = estimate(differences(scores, claim.of, claim.than, claim.metric))
    return verdict(found.training, found.seeds, claim.direction), found.mean, found.training, len(found.seeds)


def verdict(interval: Interval | None, seeds: Mapping[int, float], direction: Direction) -> Verdict:
    """By the interval of the seeds' mean differences: on the claimed side of 0, on the other, or neither."""
    if interval is None or len(seeds) < SEEDS or interval.sign == 0:
        return "undecided"
    return "holds" if (interval.sign > 0) == (direction == "higher") else "fails"
