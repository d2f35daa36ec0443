"""The stages that promise an exact resume, run at the smoke experiment's size in their own workspace."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hiar.parameters import merge
from hiar.workspace import experiment_tree

from .harness import kill_and_resume

PROJECT = Path(__file__).parents[2]
VARIANT = "hiar"
# Outputs of each stage: its artifact, then its figures and its curve. In the order of their dependencies.
STAGES = {
    "codec": ("codec", "metrics/seed-0/codec.json", "curves/seed-0/codec.csv"),
    "teacher": ("teacher", "metrics/seed-0/teacher.json", "curves/seed-0/teacher.csv"),
    "pairs": ("pairs", "metrics/seed-0/pairs.json"),
    "init": ("init", "metrics/seed-0/init.json", "curves/seed-0/init.csv"),
    "distill": (f"distill/{VARIANT}", f"metrics/seed-0/distill/{VARIANT}.json", f"curves/seed-0/distill/{VARIANT}.csv"),
    "sample": (f"samples/distill/{VARIANT}",),
}
OPTIONS = {"distill": ["--variant", VARIANT], "sample": ["--model", "distill", "--variant", VARIANT]}
# By default, the smoke experiment ends before its first checkpoint is due.
OFTEN = {"runtime": {"checkpoint_minutes": 0.0005}}


def make_workspace(folder: Path) -> None:
    """Write the smoke experiment's params with frequent checkpoints, and a workspace's link to the code."""
    tree = merge(experiment_tree(PROJECT, "smoke"), OFTEN)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    (folder / "hiar").symlink_to(PROJECT / "hiar")


def crash(workspace: Path, stage: str, moments: int, seed: int, start: Callable[..., Any]) -> dict[str, Any]:
    """Kill a stage at ``moments`` random moments, each in a separate run; the stages before it must have run.

    start: starts `hiar` (`start` of commands.py).
    """
    draw = random.Random(f"{seed} {stage}")
    artifact, *also = STAGES[stage]
    command = ("stage", stage, "--seed", 0, *OPTIONS.get(stage, []))
    return kill_and_resume(
        lambda log: start(*command, folder=workspace, stdout=log, stderr=log, session=True, HIAR_TRACKING="off"),
        sorted(draw.uniform(0.02, 0.98) for _ in range(moments)),
        workspace / "artifacts" / "seed-0" / artifact,
        [workspace / path for path in also],
    )
