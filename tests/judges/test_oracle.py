"""The oracle on known inputs: what it finds in rendered clips, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_worlds import DEFAULT, LARGE, PANNING, WHOLE_FAMILY, worlds
from torch import Tensor

from hiar.config import ShapesWorld
from hiar.errors import UserError
from hiar.judges.shapes.oracle import CHUNK, Judgement, judge
from hiar.worlds.shapes.palette import background_table, color_table
from hiar.worlds.shapes.render import clips, render
from hiar.worlds.shapes.scenes import Scenes, positions, scenes

# The thresholds of a good frame in params.yaml.
RESIDUAL, COLOR = 0.08, 0.25


def _good(judgement: Judgement) -> Tensor:
    return judgement.shape_right & (judgement.residual < RESIDUAL) & (judgement.color_error < COLOR)


def _check_true_clips(world: ShapesWorld, seed: int, count: int, frames: int) -> Tensor:
    """Check rendered clips; returns the errors of the colours found, (V, F, 3)."""
    batch = scenes(world, seed=seed, first=0, count=count)
    video, captions = clips(world, seed=seed, first=0, count=count, frames=frames)
    judgement = judge(world, video, captions)
    assert judgement.residual.shape == (count, frames)
    assert judgement.residual.max() < 0.02
    assert torch.equal(judgement.shape, batch.shape[:, None].expand(-1, frames))
    assert judgement.shape_right.all()
    assert (judgement.position - positions(batch, frames)).norm(dim=2).max() < 0.5
    assert judgement.color_error.max() < 0.05
    color = color_table(world.colors)[batch.color][:, None]
    assert (judgement.color - color).norm(dim=2).max() < 0.05
    background = background_table(world.backgrounds)[batch.background][:, None]
    assert (judgement.background - background).norm(dim=2).max() < 0.02
    assert judgement.background_error.max() < 0.02
    return judgement.color - color


@pytest.mark.parametrize("world", [DEFAULT, WHOLE_FAMILY, PANNING, LARGE], ids=["default", "all", "panning", "large"])
def test_true_clips_are_recognised(world: ShapesWorld) -> None:
    off = _check_true_clips(world, seed=11, count=40, frames=5)
    assert off.mean(dim=(0, 1)).abs().max() < 0.001  # a quarter of a grey level: the colours found have no bias


@settings(max_examples=10)
@given(worlds(), st.integers(0, 1000))
def test_true_clips_of_any_world_are_recognised(world: ShapesWorld, seed: int) -> None:
    _check_true_clips(world, seed, count=6, frames=3)


def test_a_frame_is_judged_alike_alone_and_among_many() -> None:
    video, captions = clips(DEFAULT, seed=1, first=0, count=CHUNK // 8 + 1, frames=10)
    together, alone = judge(DEFAULT, video, captions), judge(DEFAULT, video[-1:], captions[-1:])
    torch.testing.assert_close(together.position[-1:], alone.position, atol=1e-3, rtol=0)
    torch.testing.assert_close(together.residual[-1:], alone.residual, atol=1e-4, rtol=0)


def test_a_true_clip_with_pixel_noise_is_good_and_its_residual_is_the_noise() -> None:
    video, captions = clips(DEFAULT, seed=2, first=0, count=20, frames=3)
    noise = 0.05 * 255 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    noisy = (video + noise).round().clamp(0, 255).to(torch.uint8)
    judgement = judge(DEFAULT, noisy, captions)
    assert _good(judgement).all()
    expected = ((noisy.float() - video.float()) / 255).square().mean(dim=(2, 3, 4)).sqrt()
    torch.testing.assert_close(judgement.residual, expected, rtol=0.05, atol=0)


def test_noise_is_not_good() -> None:
    noise = torch.randint(0, 256, (3, 4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judgement = judge(DEFAULT, noise, ["a red disc moves", "a blue wide bar moves", "a green tall bar moves"])
    assert (judgement.residual > 0.2).all()


def test_a_blank_frame_is_not_good_even_in_the_captioned_colour() -> None:
    red = (color_table(["red"])[0] * 255).to(torch.uint8)
    blank = torch.stack([red.expand(2, 64, 64, 3), torch.zeros(2, 64, 64, 3, dtype=torch.uint8)])
    for caption in ("a red disc moves", "a red wide bar moves", "a red tall bar moves"):
        judgement = judge(DEFAULT, blank, [caption] * 2)
        assert judgement.residual.max() < 0.01  # the world always fits, with an invisible shape
        assert not judgement.visible.any()
        # no two colours are further apart than black and white
        torch.testing.assert_close(judgement.color_error, torch.ones(3).norm().expand(2, 2))
        assert torch.isfinite(judgement.position).all()


def test_a_shape_is_visible_from_half_of_the_least_contrast_on() -> None:
    world = DEFAULT.model_copy(update={"backgrounds": ["black"]})
    batch, colors = scenes(world, seed=0, first=0, count=20), color_table(world.colors)
    contrasts = (colors - background_table(world.backgrounds)).norm(dim=1)
    captions = [f"a {world.colors[color]} disc moves" for color in batch.color]
    for factor in (0.85, 1.15):
        share = factor * contrasts.min() / 2 / contrasts[batch.color]
        dim = (render(world, batch, 1) * share.view(-1, 1, 1, 1, 1)).round().to(torch.uint8)
        assert judge(world, dim, captions).visible.float().mean() == (factor > 1)


def test_a_wrong_colour_shape_or_background_is_detected() -> None:
    world = DEFAULT.model_copy(update={"caption_dropout": 0.0})
    batch = scenes(world, seed=3, first=0, count=1)
    video = render(world, batch, 3)
    color, shape, background = (
        names[int(index)]
        for names, index in (
            (world.colors, batch.color),
            (world.shapes, batch.shape),
            (world.backgrounds, batch.background),
        )
    )
    other_color, other_shape, other_background = (
        next(name for name in names if name != true)
        for names, true in ((world.colors, color), (world.shapes, shape), (world.backgrounds, background))
    )

    def judged(color: str, shape: str, background: str) -> Judgement:
        return judge(world, video, [f"a {color} {shape.replace('_', ' ')} moves on a {background} background"])

    assert _good(judged(color, shape, background)).all()
    assert (judged(other_color, shape, background).color_error > COLOR).all()
    assert not judged(color, other_shape, background).shape_right.any()
    assert (judged(color, shape, other_background).background_error > 0.1).all()
    free = judge(world, video, [f"a {color} {shape.replace('_', ' ')} moves"])
    assert (free.background_error < 0.02).all()


def test_two_shapes_are_not_good() -> None:
    batch = scenes(DEFAULT.model_copy(update={"backgrounds": ["black"]}), seed=0, first=0, count=40)
    far = _mirrored(batch)
    apart = (batch.start - far.start).abs().amax(dim=1) > 24
    world = DEFAULT.model_copy(update={"backgrounds": ["black"]})
    both = torch.maximum(render(world, batch, 1), render(world, far, 1))[apart]
    assert len(both) > 10
    captions = [
        f"a {world.colors[c]} {world.shapes[s].replace('_', ' ')} moves"
        for c, s in zip(batch.color[apart], batch.shape[apart], strict=True)
    ]
    judgement = judge(world, both, captions)
    assert not _good(judgement).any()


def _mirrored(batch: Scenes) -> Scenes:
    """The same shapes on the other side of the frame."""
    changed = {**vars(batch), "start": batch.low + batch.high - batch.start}
    return Scenes(**changed)


def test_frames_of_another_size_and_captions_of_another_world_are_refused() -> None:
    video, captions = clips(DEFAULT, seed=0, first=0, count=2, frames=1)
    with pytest.raises(ValueError, match="64 pixels"):
        judge(DEFAULT, video[:, :, :32], captions)
    with pytest.raises(ValueError, match="captioned"):
        judge(DEFAULT, video, captions[:1])
    with pytest.raises(UserError, match="unknown word"):
        judge(DEFAULT, video, ["a red disc moves", "a purple disc moves"])
