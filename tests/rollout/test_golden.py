"""The public implementations of HiAR and Self-Forcing, tensor by tensor: ours computes what they computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import safe_open
from tiny import relative_error
from torch import Tensor

from hiar.config import Conventions, Order, Passes
from hiar.grid import Cell, make_grid
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import OURS, Rollout
from hiar.rollout.walk import generate
from hiar.schedule import TIMESTEP_SCALE, step_sigmas, x0_from_velocity

FILE = Path(__file__).parents[1] / "golden" / "wan_tiny.safetensors"
WITHIN = 2e-5  # of the largest value
THEIRS = OURS.model_copy(update={"given": "clean", "sinks": "stay"})

with safe_open(FILE, "pt") as file:
    SIZES = json.loads(file.metadata()["description"])
    GOLDEN = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    transformer = WanTransformer3DModel(
        patch_size=tuple(SIZES["patch"]),
        num_attention_heads=SIZES["heads"],
        attention_head_dim=SIZES["head_dim"],
        in_channels=SIZES["channels"],
        out_channels=SIZES["channels"],
        text_dim=SIZES["text_dim"],
        freq_dim=SIZES["freq_dim"],
        ffn_dim=SIZES["ffn"],
        num_layers=SIZES["layers"],
    )
    prefix = "weights/model."
    weights = {name.removeprefix(prefix): value for name, value in GOLDEN.items() if name.startswith(prefix)}
    transformer.load_state_dict(convert_wan_transformer_to_diffusers(weights))
    return Denoiser(transformer, "flow", coordinates=False).requires_grad_(False)


class GoldenRollout(Rollout):
    """A rollout with the noise of the file."""

    def noise(self, cell: Cell) -> Tensor:
        folder = "given/noise" if self.grid.given else "noise"
        known = GOLDEN.get(f"{folder}/{cell.block}/{cell.step}")
        return super().noise(cell) if known is None else known  # theirs had no noise for blocks that are given


def names(room: str) -> list[str]:
    return [name for name in GOLDEN if name.startswith(f"{room}/") and name.count("/") > 1 and "/noise/" not in name]


def test_every_tensor_has_its_test() -> None:
    tested = {*names("bidirectional"), *names("masked"), *names("rollout"), *names("given"), *names("sinks")}
    inputs = {"bidirectional/x", "masked/x", "masked/timesteps", "given/clip", "given/text", "text"}
    rest = GOLDEN.keys() - tested - inputs
    assert all(name.startswith(("noise/", "given/noise/", "weights/")) for name in rest)
    assert len(tested) == 5 + 2 + 13 + 3 + 1


@pytest.mark.parametrize("name", names("bidirectional"))
def test_a_forward_of_the_teacher(model: Denoiser, name: str) -> None:
    x, sigma = GOLDEN["bidirectional/x"], torch.full((2,), float(name.rsplit("/", 1)[1]) / TIMESTEP_SCALE)
    x0 = model(x, sigma, GOLDEN["text"], Bidirectional())
    expected = x0_from_velocity(x, GOLDEN[name], sigma.view(-1, 1, 1, 1, 1))
    assert relative_error(x0, expected) < WITHIN


@pytest.mark.parametrize("name", names("masked"))
def test_a_masked_forward(model: Denoiser, name: str) -> None:
    x = GOLDEN["masked/x"]
    sigma = (GOLDEN["masked/timesteps"] / TIMESTEP_SCALE).repeat_interleave(SIZES["block"], dim=1)
    x0 = model(x, sigma, GOLDEN["text"], BlockCausal(SIZES["block"], window_of(name, blocks=7)))
    expected = x0_from_velocity(x, GOLDEN[name], sigma[:, None, :, None, None])
    assert relative_error(x0, expected) < WITHIN


def window_of(name: str, blocks: int) -> int:
    window = name.rsplit("window_", 1)[-1].split("_")[0] if "window_" in name else "all"
    return blocks if window == "all" else int(window)


def rolled_out(
    model: Denoiser, name: str, order: Order, passes: Passes, conventions: Conventions = THEIRS
) -> tuple[Tensor, Tensor]:
    """Ours and theirs, for the rollout that a tensor is the result of."""
    expected = GOLDEN[name]
    room, _, context, *rest = name.split("/")
    clip = GOLDEN["given/clip"] if room == "given" else None
    blocks, exit_step = expected.shape[2] // SIZES["block"], 2 if name.endswith("exit_step_2") else None
    grid = make_grid(
        order,
        "clean" if context == "finished" else context,  # type: ignore[arg-type]
        blocks=blocks,
        steps=SIZES["steps"],
        window=window_of(name, blocks),
        sinks=1 if room == "sinks" else 0,
        given=0 if clip is None else clip.shape[2] // SIZES["block"],
    )
    rollout = GoldenRollout(
        grid,
        step_sigmas(SIZES["steps"], SIZES["shift"]),
        (SIZES["channels"], SIZES["block"], *expected.shape[3:]),
        "euler" if "euler" in rest else "sde",
        0,
        range(len(expected)),
        GOLDEN["given/text" if room == "given" else "text"],
        conventions=conventions,
    )
    return generate(model, rollout, order, clip, passes=passes, exit_step=exit_step), expected


@pytest.mark.parametrize("name", [*names("rollout"), *names("given"), *names("sinks")])
def test_rollouts_in_every_order_and_kind_of_passes(model: Denoiser, name: str) -> None:
    if "finished" in name:
        walks: list[tuple[Order, Passes]] = [("block_first", "separate"), ("block_first", "fused")]
    else:
        walks = [("step_first", "separate"), ("step_first", "fused"), ("diagonal", "separate"), ("diagonal", "batched")]
    for order, passes in walks:
        ours, theirs = rolled_out(model, name, order, passes)
        assert relative_error(ours, theirs) < WITHIN, (order, passes)


@pytest.mark.parametrize("name", ["given/step_first/output/window_3", *names("sinks")])
def test_our_own_conventions_are_others(model: Denoiser, name: str) -> None:
    """Given blocks at the context's level, sinks that turn with the window: what the settings choose between."""
    ours, theirs = rolled_out(model, name, name.split("/")[1], "separate", OURS)  # type: ignore[arg-type]
    assert relative_error(ours, theirs) > 100 * WITHIN
