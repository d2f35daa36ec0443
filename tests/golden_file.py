"""The golden file: tensors of the public implementations of HiAR and Self-Forcing, and our rollouts on its noise."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from hiar.config import Conventions, Order, Passes
from hiar.grid import Cell, make_grid
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import OURS, Rollout
from hiar.rollout.walk import generate
from hiar.schedule import step_sigmas

FILE = Path(__file__).parent / "golden" / "wan_tiny.safetensors"
WITHIN = 2e-5  # tolerance, relative to the largest value
THEIRS = OURS.model_copy(update={"given": "clean", "sinks": "stay"})

with safe_open(FILE, "pt") as file:
    SIZES = json.loads(file.metadata()["description"])
    GOLDEN = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


class GoldenRollout(Rollout):
    """A rollout with the noise of the file."""

    def noise(self, cell: Cell) -> Tensor:
        folder = "given/noise" if self.grid.given else "noise"
        known = GOLDEN.get(f"{folder}/{cell.block}/{cell.step}")
        return super().noise(cell) if known is None else known  # the file has no noise for given blocks


def names(group: str) -> list[str]:
    return [name for name in GOLDEN if name.startswith(f"{group}/") and name.count("/") > 1 and "/noise/" not in name]


def window_of(name: str, blocks: int) -> int:
    window = name.rsplit("window_", 1)[-1].split("_")[0] if "window_" in name else "all"
    return blocks if window == "all" else int(window)


def rolled_out(
    model: Denoiser, name: str, order: Order, passes: Passes, conventions: Conventions = THEIRS
) -> tuple[Tensor, Tensor]:
    """Our video and theirs, for the rollout whose result is this tensor of the file."""
    expected = GOLDEN[name]
    group, _, context, *rest = name.split("/")
    clip = GOLDEN["given/clip"] if group == "given" else None
    blocks, exit_step = expected.shape[2] // SIZES["block"], 2 if name.endswith("exit_step_2") else None
    grid = make_grid(
        context,  # type: ignore[arg-type]
        blocks=blocks,
        steps=SIZES["steps"],
        window=window_of(name, blocks),
        sinks=1 if group == "sinks" else 0,
        given=0 if clip is None else clip.shape[2] // SIZES["block"],
    )
    rollout = GoldenRollout(
        grid,
        step_sigmas(SIZES["steps"], SIZES["shift"]),
        (SIZES["channels"], SIZES["block"], *expected.shape[3:]),
        "euler" if "euler" in rest else "sde",
        0,
        range(len(expected)),
        GOLDEN["given/text" if group == "given" else "text"],
        conventions=conventions,
    )
    return generate(model, rollout, order, clip, passes=passes, exit_step=exit_step), expected
