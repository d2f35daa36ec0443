"""Charts of the validations during training, and the correlation of motion between the two attention modes.

Fig. 4 of the paper: without forward-KL, dynamics fall over training, with bidirectional as with causal attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hiar.report.charts import Line, Point, line_chart
from hiar.report.columns import Metric
from hiar.report.page import Dynamics, Figure
from hiar.report.series import Series
from hiar.statistics.validations import BOTH_WAYS, Correlation, Validated, correlation

SHOWN = ("good", "smoothed_speed", "saturation_drift", "sharpness_drift")
DYNAMICS = "smoothed_speed"  # stands for the paper's dynamic degree

Validations = Mapping[Series, Mapping[int, Sequence[Validated]]]  # by training seed


def dynamics(metrics: Sequence[Metric], validations: Validations) -> Dynamics:
    """A chart for each metric of `SHOWN`; lines of videos sampled with bidirectional attention are dashed."""
    charts = []
    for metric in (one for one in metrics if one.key in SHOWN):
        lines = [
            Line(f"{series.name}, {mode}", series.color, points, dashed=bool(prefix))
            for prefix, mode in (("", "as it walks"), (BOTH_WAYS, "bidirectional"))
            for series, seeds in validations.items()
            if (points := _course(seeds, prefix + metric.key))
        ]
        if lines:
            note = "" if metric.better is None else f"{metric.better} is better"
            charts.append(Figure(metric.name, note, line_chart(f"Validation, {metric.name}", "update", lines)))
    found = {series: correlation(seeds, DYNAMICS, BOTH_WAYS + DYNAMICS) for series, seeds in validations.items()}
    together = [(series, _words(one)) for series, one in found.items() if one is not None]
    return Dynamics(list(validations), charts, together)


def _course(seeds: Mapping[int, Sequence[Validated]], name: str) -> list[Point]:
    """The mean over training seeds, at each update at which all of them were validated."""
    values = [{one.step: one.metrics[name] for one in taken if name in one.metrics} for taken in seeds.values()]
    steps = sorted(set.intersection(*map(set, values)))
    return [Point(step, sum(one[step] for one in values) / len(values)) for step in steps]


def _words(found: Correlation) -> str:
    each = ", ".join(f"{r:.3f}" for r in found.seeds.values())
    if found.interval is None:
        return f"r = {found.mean:.3f}; one training seed, so no interval"
    low, high = found.interval
    return f"r = {found.mean:.3f} [{low:.3f}, {high:.3f}]; by seed {each}"
