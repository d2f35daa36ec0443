"""Rendering: determinism, and pixels with known values."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_worlds import DEFAULT, PANNING, WHOLE_FAMILY, worlds

from hiar.config import Shape, ShapesWorld
from hiar.worlds.shapes.backdrop import stripes
from hiar.worlds.shapes.palette import BACKGROUNDS, COLORS
from hiar.worlds.shapes.render import clips, render
from hiar.worlds.shapes.scenes import positions, scenes
from hiar.worlds.shapes.shapes import EDGE, extents, masks


@settings(max_examples=20)
@given(worlds(), st.integers(0, 1000), st.integers(0, 50), st.integers(1, 4), st.integers(1, 6))
def test_a_clip_is_the_same_in_any_batch_and_at_any_length(
    world: ShapesWorld, seed: int, first: int, count: int, frames: int
) -> None:
    video, captions = clips(world, seed=seed, first=first, count=count, frames=frames)
    assert video.shape == (count, frames, world.size, world.size, 3)
    assert video.dtype == torch.uint8
    alone, caption = clips(world, seed=seed, first=first + count - 1, count=1, frames=frames + 3)
    assert torch.equal(video[-1:], alone[:, :frames])
    assert captions[-1:] == caption


@pytest.mark.parametrize("shape", WHOLE_FAMILY.shapes)
def test_a_mask_has_its_shapes_extents_and_moves_with_its_centre(shape: Shape) -> None:
    radius, size = 10.0, 64
    mask = masks(shape, radius, size, torch.tensor([[30.0, 34.0], [33.0, 32.0]]))
    assert mask.min() == 0
    assert 0.9 <= mask.max() <= 1
    torch.testing.assert_close(mask[0].roll((-2, 3), (0, 1)), mask[1])
    reach_x, reach_y = extents(shape, radius)
    y, x = torch.nonzero(mask[0] > 0.5, as_tuple=True)
    assert abs((x - 29.5).abs().max() - reach_x) <= 1.5
    assert abs((y - 33.5).abs().max() - reach_y) <= 1.5


def test_a_masks_area_is_the_shapes() -> None:
    radius = 10.0
    centre = torch.tensor([[32.3, 31.6]])
    expected = {"disc": 314.16, "wide_bar": 160, "tall_bar": 160, "square": 256, "diamond": 200, "ring": 263.9}
    for shape in WHOLE_FAMILY.shapes:
        assert masks(shape, radius, 64, centre).sum().item() == pytest.approx(expected[shape], rel=0.01)


@pytest.mark.parametrize("shape", WHOLE_FAMILY.shapes)
def test_edges_are_soft_so_that_small_moves_show(shape: Shape) -> None:
    """A mask falls from 1 to 0 over one width along every edge, straight, slanted or round."""
    outline = {"disc": 62.83, "wide_bar": 56, "tall_bar": 56, "square": 64, "diamond": 56.57, "ring": 87.96}[shape]
    centres = torch.tensor([[32.3, 31.6], [32.4, 31.6]])
    mask, moved = masks(shape, 10.0, 64, centres)
    soft = (mask > 0) & (mask < 1)
    assert soft.sum() == pytest.approx(outline * EDGE, rel=0.15)
    assert (mask != moved).sum() > 20


def test_the_shapes_middle_and_the_corners_have_the_scenes_colours() -> None:
    """Even if the world lists its colours in another order."""
    colors, backgrounds = DEFAULT.colors[::-1], DEFAULT.backgrounds[::-1]
    world = DEFAULT.model_copy(update={"colors": colors, "backgrounds": backgrounds})
    batch = scenes(world, seed=0, first=0, count=30)
    video = render(world, batch, 4).float() / 255
    centre = positions(batch, 4).long()
    clip, frame = torch.meshgrid(torch.arange(30), torch.arange(4), indexing="ij")
    middle = video[clip, frame, centre[..., 1], centre[..., 0]]
    expected = torch.tensor([COLORS[colors[number]] for number in batch.color])
    torch.testing.assert_close(middle, expected[:, None].expand_as(middle), atol=1 / 255, rtol=0)
    backdrop = video.flatten(2, 3).median(dim=2).values  # most of a frame is backdrop
    expected = torch.tensor([BACKGROUNDS[backgrounds[number]] for number in batch.background])
    # rounded to the nearest of 256 levels
    torch.testing.assert_close(backdrop, expected[:, None].expand_as(backdrop), atol=0.51 / 255, rtol=0)


def test_the_camera_pans_a_striped_backdrop() -> None:
    batch = scenes(PANNING, seed=0, first=0, count=8)
    assert batch.pan.abs().max() <= PANNING.camera
    video = render(PANNING, batch, 12).float()
    top = video[:, :, 0].std(dim=2)  # along the top row
    assert (top > 5).all()
    assert not torch.equal(video[0, 0, 0], video[0, 5, 0])


def test_a_backdrop_pans_to_the_right() -> None:
    pans = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    light = stripes(PANNING, pans, torch.tensor([0.0, 0.3, 0.7]), 5)
    assert light.min() >= 0
    for pan, moved in zip(pans.int().tolist(), light, strict=True):
        for frame in range(5):  # whole periods span the width: what leaves on one side comes in on the other
            torch.testing.assert_close(moved[frame], moved[0].roll(pan * frame))


def test_colours_are_far_enough_apart_to_be_told() -> None:
    colors, backgrounds = torch.tensor(list(COLORS.values())), torch.tensor(list(BACKGROUNDS.values()))
    assert min((a - b).norm() for a, b in itertools.combinations(colors, 2)) > 0.35
    assert torch.cdist(colors, backgrounds).min() > 0.45
