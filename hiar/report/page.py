"""The report's page: one HTML file that contains everything it shows and needs no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hiar.report.logs import StageLog
from hiar.report.series import Series
from hiar.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A chart with its heading; ``svg`` is trusted."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Losses:
    """The curves of one stage."""

    name: str
    legend: Sequence[Series]
    charts: Sequence[Figure]


@dataclass(frozen=True)
class Dynamics:
    """Validations over training. ``together``: the correlation of each student's motion between two attention modes."""

    legend: Sequence[Series]
    charts: Sequence[Figure]
    together: Sequence[tuple[Series, str]]


@dataclass(frozen=True)
class Clip:
    """A video in the wall; ``label`` describes it for screen readers."""

    uri: str
    label: str


@dataclass(frozen=True)
class Page:
    """Everything the page shows, in order. ``wall``: prompts, each with one clip per column; times are in seconds."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    seed: int
    height: int
    width: int
    training_seconds: float
    longest_seconds: float
    columns: Sequence[Series]
    wall: Sequence[tuple[str, Sequence[Clip]]]
    segments: int
    legend: Sequence[Series]
    curves: Sequence[Figure]
    pooling: str
    tables: Sequence[Table]
    pairing: str
    differences: Sequence[Table]
    paper_table: bool
    front_legend: Sequence[Series]
    front: Sequence[Figure]
    definitions: Sequence[tuple[str, str]]
    losses: Sequence[Losses]
    dynamics: Dynamics
    stages: Sequence[StageLog]
    parameters: str


def render(page: Page) -> str:
    """The page as HTML. All text is escaped, except the package's own style, script and charts."""
    context: dict[str, Any] = {name: getattr(page, name) for name in page.__dataclass_fields__}
    return fill("page.html.jinja", {"drawing": Markup}, **context, script=Markup(resource("page.js")))


def fill(template: str, filters: Mapping[str, Callable[..., Any]], **context: Any) -> str:
    """A template of this package, filled, with all text escaped. Raises jinja2.UndefinedError for a missing name."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(resource(template)).render(context, style=Markup(resource("style.css")))


def data_uri(mp4: bytes) -> str:
    """A video as a data URI."""
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def resource(name: str) -> str:
    """The text of a file of this package."""
    return files("hiar.report").joinpath(name).read_text(encoding="utf-8")
