"""Linear layers in fp8: exact for fp8 numbers, within a bound for others, refused where the error is too large."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from commands import hiar
from students import save_student
from tiny import tiny_denoiser
from torch import nn

from hiar.errors import UserError
from hiar.models.card import Walk
from hiar.models.fp8 import ERROR, Fp8Linear, in_fp8, use_fp8
from hiar.models.generator import load_generator
from hiar.stages import plan
from hiar.stages.plan import number_format, round_to_fp8
from hiar.stages.sample import sample_latents

PROMPTS = ["a red disc moves left", "a blue disc moves up"]


def _linear(dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Linear, Fp8Linear]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(dtype).requires_grad_(False)
    return linear, Fp8Linear(linear)


def test_numbers_representable_in_fp8_are_multiplied_exactly() -> None:
    linear, _ = _linear(torch.float32)
    linear.weight.copy_(torch.randint(-8, 9, (32, 64)).float())
    linear.weight[:, 0] = 448.0  # the largest fp8 number, so that nothing is scaled
    x = torch.randint(-8, 9, (3, 5, 64)).float()
    x[..., 1] = 448.0
    torch.testing.assert_close(Fp8Linear(linear)(x), linear(x), rtol=1e-6, atol=0)


def test_every_token_and_every_output_has_a_scale_of_its_own() -> None:
    """A token or output a thousand times larger costs the others no precision."""
    linear, rounded = _linear()
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    before = rounded(x)
    assert (before - linear(x)).norm() < 0.05 * linear(x).norm()
    x[2] *= 1000
    linear.weight[7] *= 1000
    after = Fp8Linear(linear)(x)
    kept = [i for i in range(32) if i != 7]
    assert torch.equal(after[[0, 1, 3]][:, kept], before[[0, 1, 3]][:, kept])
    assert not torch.equal(after[:, 7], before[:, 7])


def test_a_token_of_zeros_gives_the_bias() -> None:
    linear, rounded = _linear()
    x = torch.zeros(2, 64, dtype=torch.bfloat16)
    torch.set_flush_denormal(True)  # as some GPU kernels do
    try:
        assert torch.equal(rounded(x), linear.bias.expand(2, 32))
    finally:
        torch.set_flush_denormal(False)


def test_only_linear_layers_of_blocks_with_supported_sizes_become_fp8(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    transformer = load_generator(tmp_path / "student").denoiser.transformer
    outside = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    outside = [name for name in outside if not name.startswith("blocks.")]
    denoiser = load_generator(tmp_path / "student").denoiser
    use_fp8(denoiser)
    left = [name for name, module in denoiser.transformer.named_modules() if isinstance(module, nn.Linear)]
    assert left == outside
    odd = tiny_denoiser()  # 24 wide
    use_fp8(odd)
    assert not in_fp8(odd)


def test_fp8_changes_a_video_little_and_is_part_of_the_number_format(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    walk = Walk(order="step_first", context="output")
    source = load_generator(tmp_path / "student")
    source.denoiser.cast(torch.bfloat16)
    expected = sample_latents(source, PROMPTS, 12, walk, 0, range(2)).float()
    error = round_to_fp8(source)
    assert 0 < error < ERROR
    assert number_format(source) == "bfloat16 with fp8 linear layers"
    out = sample_latents(source, PROMPTS, 12, walk, 0, range(2)).float()
    assert 0 < (out - expected).norm() < 0.2 * expected.norm()


def test_fp8_that_changes_too_much_or_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    monkeypatch.setattr(plan, "ERROR", 0.001)
    with pytest.raises(UserError, match=r"--fp8: a pass differs by \d\.\d%, more than 0%; leave it out"):
        round_to_fp8(source)
    monkeypatch.setattr(plan, "with_fp8", lambda *_: math.nan)  # as for a pass that overflows
    with pytest.raises(UserError, match=r"--fp8: a pass differs by nan%, more than 0%; leave it out"):
        round_to_fp8(source)
    monkeypatch.undo()
    save_student(tmp_path / "odd", model={"heads": 2, "head_dim": 12, "ffn": 50})
    with pytest.raises(UserError, match="--fp8: no linear layer has sizes that are multiples of 16; leave it out"):
        round_to_fp8(load_generator(tmp_path / "odd"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU here may multiply fp8")
def test_a_machine_that_cannot_multiply_fp8_refuses_it_in_one_line(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    request = ("--checkpoint", "student", "--prompt", PROMPTS[0], "--frames", 12, "--fp8", "--out")
    for command, out in (("sample", "out"), ("stream", "v.mp4")):
        stderr = hiar(command, *request, out, folder=tmp_path, code=2).stderr
        assert stderr == "error: --fp8: needs a Hopper GPU or newer, here: none; leave it out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
