"""A result file, its tables in Markdown and its chart.

``python -m benchmarks.report RESULT.json`` rewrites them, and the table in docs/speed.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hiar.io.files import write_json, write_text
from hiar.report.charts import Axis, tick_label

INK, SOFT, RULE, MEASURED, PREDICTED = "#17181a", "#5c6066", "#e3e3e0", "#2a78d6", "#e0591f"
WIDTH, LEFT, RIGHT, TOP, ROW = 720, 220, 20, 46, 24
GUIDE = Path(__file__).parents[1] / "docs" / "speed.md"
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"


def write_report(out: Path, result: Mapping[str, Any]) -> str:
    """Write NAME.json, NAME.md and NAME.svg; the Markdown is returned."""
    write_json(out, result)
    text = markdown(result, f"{out.stem}.svg")
    write_text(out.with_suffix(".md"), text)
    write_text(out.with_suffix(".svg"), plot(result))
    return text


def write_guide(name: str, result: Mapping[str, Any]) -> None:
    """Put a result's figures between the marks with its name in docs/speed.md, if it has them."""
    page = GUIDE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN.format(name))
    if begin:
        _, end, after = rest.partition(END)
        write_text(GUIDE, f"{before}{begin}\n{_short(result)}\n{end}{after}")


def markdown(result: Mapping[str, Any], picture: str) -> str:
    """The result as a Markdown page."""
    peak, memory = result["peak"], result["process_peak_memory"]
    facts = [
        *_facts(result),
        f"medians and ranges of {result['rounds']} interleaved rounds",
        f"peak: {peak['flops_per_second'] / 1e9:,.0f} GFLOP/s, {peak['measured_with']}",
        f"memory: {memory['bytes'] / 2**20:,.0f} MiB at most, of {memory['of']}",
    ]
    parts = [f"# {result['preset']}", "\n".join(f"- {fact}" for fact in facts), f"![Frames per second]({picture})"]
    parts += ["## Walks", _walks(result["walks"])]
    if result["ratios"]:
        parts += ["## Ratios", _ratios(result["ratios"])]
    if other := result.get("reference"):
        parts += ["## The original implementation", _reference(other)]
    parts += ["## Parts", _parts(result["parts_seconds"])]
    if together := result.get("parts_seconds_together"):
        parts += ["## Parts, two processes side by side", _parts(together)]
    if result["left_out"]:
        parts += ["## Left out", "\n".join(f"- {name}: {reason}" for name, reason in result["left_out"].items())]
    return "\n\n".join(parts) + "\n"


def _facts(result: Mapping[str, Any]) -> list[str]:
    """Hardware, versions, commit, and the shape that was measured."""
    shape, code = result["shape"], result["code"]
    return [
        f"{result['hardware']}; {result['threads']} thread{'s' if result['threads'] > 1 else ''} a process; "
        f"{', '.join(f'{name} {number}' for name, number in result['versions'].items())}; "
        f"commit {code['commit'][:12]}{' with changes' if code['dirty'] else ''}",
        f"batch {result['batch']}, {result['blocks']} blocks of {shape['latent_block'][1]} latent frames "
        f"({shape['tokens']} tokens), window {shape['window_blocks']} blocks, {shape['steps']} steps, "
        f"{shape['layers']} layers of width {shape['dim']}, {result['dtype']}, "
        f"{result.get('attention', 'default')} attention{_layers(result)}",
    ]


def _layers(result: Mapping[str, Any]) -> str:
    """How the layers were changed by fp8 and compiling, if at all."""
    said = ""
    if fp8 := result.get("fp8"):
        said += f", linear layers in fp8 (a pass on one block differs by {fp8['error']:.1%})"
    if compiled := result.get("compiled"):
        said += (
            f", compiled layers (a pass on one block {compiled['gain']:.2f} times as fast, "
            f"{compiled['first_call']:.0f} s for its first call, relative difference {compiled['error']:.1g})"
        )
    return said


def _short(result: Mapping[str, Any]) -> str:
    """The part of a result that docs/speed.md shows."""
    heads = ["walk", "frames/s", "decoded", "first block, ms", "between blocks, ms", "model's error"]
    rows = [
        [
            walk["name"],
            _range(walk["frames_per_second"]),
            _range(walk["frames_per_second_decoded"]),
            f"{1e3 * walk['first_block_seconds']['median']:.1f}",
            f"{1e3 * walk['between_blocks_seconds']['median']:.2f}",
            f"{walk['prediction_error']:+.0%}",
        ]
        for walk in result["walks"]
    ]
    return "\n\n".join([f"{'; '.join(_facts(result))}.", table(heads, rows), _ratios(result["ratios"])])


def _walks(walks: Sequence[Mapping[str, Any]]) -> str:
    heads = [
        "walk",
        "forward calls",
        "GFLOP",
        "frames/s",
        "decoded",
        "ms a block",
        "predicted",
        "error",
        "first block, ms",
        "between blocks, ms",
        "caches, MiB",
        "peak memory, MiB",
        "of peak",
    ]
    rows = [
        [
            walk["name"],
            " + ".join(map(str, walk["forward_calls"])),
            f"{walk['flops'] / 1e9:.3g}",
            _range(walk["frames_per_second"]),
            _range(walk["frames_per_second_decoded"]),
            f"{1e3 * walk['seconds_a_block']:.2f}",
            f"{1e3 * walk['predicted_seconds_a_block']:.2f}",
            f"{walk['prediction_error']:+.0%}",
            f"{1e3 * walk['first_block_seconds']['median']:.1f}",
            f"{1e3 * walk['between_blocks_seconds']['median']:.2f}",
            f"{walk['cache_bytes'] / 2**20:,.1f}",
            "-" if walk["peak_memory_bytes"] is None else f"{walk['peak_memory_bytes'] / 2**20:,.0f}",
            f"{walk['share_of_peak']:.0%}",
        ]
        for walk in walks
    ]
    return table(heads, rows)


def _ratios(ratios: Sequence[Mapping[str, Any]]) -> str:
    heads = ["walk", "against", "times faster", "predicted", "error"]
    rows = [
        [
            ratio["walk"],
            ratio["against"],
            _times(ratio["measured"]),
            f"{ratio['predicted']:.2f}",
            f"{ratio['prediction_error']:+.0%}",
        ]
        for ratio in ratios
    ]
    return table(heads, rows)


def _reference(other: Mapping[str, Any]) -> str:
    rates = [f"- {order}: {_range(rate)} frames/s" for order, rate in other["frames_per_second"].items()]
    head = [f"- commit {other['commit'][:12]}, attention of {other['attention']}", *rates]
    rows = [[ratio["walk"], ratio["against"], _times(ratio["measured"])] for ratio in other["ratios"]]
    return "\n\n".join(["\n".join(head), table(["walk", "against", "times faster"], rows)])


def _parts(parts: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[name, *(f"{1e3 * part[key]:.3f}" for key in ("median", "low", "high"))] for name, part in parts.items()]
    return table(["part", "median, ms", "lowest", "highest"], rows)


def _times(ratio: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f}-{high:.2f})".format(**ratio)


def _range(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else "{median:,.4g} ({low:,.4g}-{high:,.4g})".format(**values)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(result: Mapping[str, Any]) -> str:
    """An SVG chart with one row per walk: frames/s as measured (a bar with its range) and as predicted (a mark)."""
    walks = result["walks"]
    height = TOP + ROW * len(walks) + 34
    predicted = [walk["frames"] / walk["predicted_seconds"] for walk in walks]
    top = max([*predicted, *(walk["frames_per_second"]["high"] for walk in walks)])
    axis = Axis(0.0, 1.05 * top, LEFT, WIDTH - RIGHT)
    title = f"{result['preset']}, batch {result['batch']}: frames of video a second"
    body = [_text(LEFT, 18, title, INK, 13), _key(LEFT, 36)]
    for tick in axis.ticks():
        x = axis.at(tick)
        body.append(f'<path d="M{x:.1f} {TOP}V{height - 30}" stroke="{RULE}"/>')
        body.append(_text(x, height - 14, tick_label(tick), SOFT, anchor="middle"))
    for number, (walk, expected) in enumerate(zip(walks, predicted, strict=True)):
        y = TOP + ROW * number + ROW / 2
        rate = walk["frames_per_second"]
        body.append(_text(LEFT - 8, y + 4, walk["name"], INK, anchor="end"))
        body.append(
            f'<rect x="{LEFT}" y="{y - 7:.1f}" width="{axis.at(rate["median"]) - LEFT:.1f}" height="14" '
            f'rx="2" fill="{MEASURED}" fill-opacity="0.75"/>'
        )
        body.append(f'<path d="M{axis.at(rate["low"]):.1f} {y:.1f}H{axis.at(rate["high"]):.1f}" stroke="{INK}"/>')
        body.append(_mark(axis.at(expected), y))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(body)}</svg>\n'
    )


def _key(x: float, y: float) -> str:
    bar = f'<rect x="{x}" y="{y - 8}" width="16" height="9" rx="2" fill="{MEASURED}" fill-opacity="0.75"/>'
    parts = [bar, _text(x + 22, y, "measured, with its range", SOFT), _mark(x + 190, y - 4)]
    return "".join([*parts, _text(x + 200, y, "predicted from the costs of single passes", SOFT)])


def _mark(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 9:.1f}V{y + 9:.1f}" stroke="{PREDICTED}" stroke-width="3"/>'


def _text(x: float, y: float, text: str, fill: str, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def main(paths: Sequence[str]) -> int:
    """Rewrite the reports of result files."""
    for path in map(Path, paths):
        result = json.loads(path.read_text(encoding="utf-8"))
        write_report(path, result)
        write_guide(path.stem, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
