"""The comparison table: a row per model over its seeds, and the lines below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.comparison import comparison_table


def summary(mean: float) -> dict[str, Any]:
    return {"good": {"mean": mean, "se": 0.03, "n": 4}, "border_jump": {"mean": mean / 2, "se": 0.03, "n": 4}}


def write(folder: Path, models: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Write the figures of two seeds, and of two worlds."""
    (folder / "metrics").mkdir(exist_ok=True)
    tree = {
        stage: {
            variant: {f"seed-{seed}": summary(mean) for seed, mean in enumerate(means)}
            for variant, means in variants.items()
        }
        for stage, variants in models.items()
    }
    (folder / "metrics" / "summary.json").write_text(json.dumps(tree))
    worlds = [{"seed": seed, "metrics": summary(mean)} for seed, mean in enumerate((1.0, 0.9))]
    (folder / "metrics" / "world.json").write_text(json.dumps(worlds))


MODELS = {
    "teacher": {"teacher": (0.8, 0.9)},
    "init": {"hiar": (0.2, 0.3)},
    "distill": {"self-forcing": (0.5, 0.7), "hiar": (0.6, 0.7)},
}


def rows(text: str) -> list[list[str]]:
    """The cells of the first table's rows, without the header and its rule."""
    lines = next(part for part in text.split("\n\n") if part.startswith("|")).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_model_is_a_row_over_its_seeds_and_references_come_last(project):
    project.change(seeds=[0, 1], compare={"init": ["hiar"], "distill": ["self-forcing", "hiar"], "walked": []})
    write(project.folder, MODELS)
    text = comparison_table(project.folder)
    assert [(row[0], row[1].partition(" ")[0], row[-1]) for row in rows(text)] == [
        ("HiAR · init", "0.250", "8"),
        ("Self-Forcing", "0.600", "8"),
        ("HiAR", "0.650", "8"),
        ("Teacher", "0.850", "8"),
        ("True world", "0.950", "8"),
    ]
    assert text.endswith("`hiar stage score` writes it.")  # values per video, for the differences
    videos = [
        {
            "stage": stage,
            "variant": variant,
            "seed": seed,
            "video": video,
            "metrics": {"good": mean, "border_jump": mean},
        }
        for stage, variants in MODELS.items()
        for variant, means in variants.items()
        for seed, mean in enumerate(means)
        for video in range(4)
    ]
    (project.folder / "metrics" / "videos.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in videos))
    means, _, over_videos, table, over_seeds, other = comparison_table(project.folder).split("\n\n")
    assert (means, over_videos, over_seeds) == (
        "Mean over videos ± its standard error",
        "Difference to Self-Forcing, 95 % interval over videos",
        "Difference to Self-Forcing, 95 % interval over training seeds",
    )
    differences = [(row[0], row[1].partition(" ")[0], row[-1]) for row in rows(table) + rows(other)]
    expected = [("HiAR · init", "-0.350"), ("HiAR", "+0.050")]
    assert differences == [(*row, "8") for row in expected] + [(*row, "2") for row in expected]


def test_missing_differences_are_mentioned_only_if_there_are_two_students(project):
    write(project.folder, MODELS)
    for students, below in ((["self-forcing", "hiar"], True), (["hiar"], False)):
        project.change(seeds=[0, 1], compare={"init": [], "distill": students, "walked": []})
        assert ("No paired differences" in comparison_table(project.folder)) == below
