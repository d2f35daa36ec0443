"""Our rollouts against the public implementations of HiAR and Self-Forcing, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from golden_file import GOLDEN, SIZES, WITHIN, names, rolled_out, window_of
from tiny import relative_error

from hiar.config import Order, Passes
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import OURS
from hiar.schedule import TIMESTEP_SCALE, x0_from_velocity


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


def test_every_tensor_has_its_test() -> None:
    tested = {*names("bidirectional"), *names("masked"), *names("rollout"), *names("given"), *names("sinks")}
    inputs = {"bidirectional/x", "masked/x", "masked/timesteps", "given/clip", "given/text", "text"}
    rest = GOLDEN.keys() - tested - inputs
    assert all(name.startswith(("noise/", "given/noise/", "weights/")) for name in rest)
    assert len(tested) == 5 + 2 + 13 + 3 + 1


@pytest.mark.parametrize("name", names("bidirectional"))
def test_bidirectional_forwards_equal_the_public_ones(model: Denoiser, name: str) -> None:
    x, sigma = GOLDEN["bidirectional/x"], torch.full((2,), float(name.rsplit("/", 1)[1]) / TIMESTEP_SCALE)
    x0 = model(x, sigma, GOLDEN["text"], Bidirectional())
    expected = x0_from_velocity(x, GOLDEN[name], sigma.view(-1, 1, 1, 1, 1))
    assert relative_error(x0, expected) < WITHIN


@pytest.mark.parametrize("name", names("masked"))
def test_masked_forwards_equal_the_public_ones(model: Denoiser, name: str) -> None:
    x = GOLDEN["masked/x"]
    sigma = (GOLDEN["masked/timesteps"] / TIMESTEP_SCALE).repeat_interleave(SIZES["block"], dim=1)
    x0 = model(x, sigma, GOLDEN["text"], BlockCausal(SIZES["block"], window_of(name, blocks=7)))
    expected = x0_from_velocity(x, GOLDEN[name], sigma[:, None, :, None, None])
    assert relative_error(x0, expected) < WITHIN


@pytest.mark.parametrize("name", [*names("rollout"), *names("given"), *names("sinks")])
def test_rollouts_equal_the_public_ones_in_every_order_and_kind_of_passes(model: Denoiser, name: str) -> None:
    if "finished" in name:
        walks: list[tuple[Order, Passes]] = [("block_first", "separate"), ("block_first", "fused")]
    else:
        walks = [("step_first", "separate"), ("step_first", "fused"), ("diagonal", "separate"), ("diagonal", "batched")]
    for order, passes in walks:
        ours, theirs = rolled_out(model, name, order, passes)
        assert relative_error(ours, theirs) < WITHIN, (order, passes)


@pytest.mark.parametrize("name", ["given/step_first/output/window_3", *names("sinks")])
def test_our_default_conventions_differ_from_the_public_ones(model: Denoiser, name: str) -> None:
    """Ours show given blocks at the context's level and rotate sinks with the window; the conventions are a setting."""
    ours, theirs = rolled_out(model, name, name.split("/")[1], "separate", OURS)  # type: ignore[arg-type]
    assert relative_error(ours, theirs) > 100 * WITHIN
