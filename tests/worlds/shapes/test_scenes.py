"""Scenes: motion, and what they depend on."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_worlds import DEFAULT, PANNING, worlds

from hiar.config import ShapesWorld
from hiar.worlds.shapes.scenes import positions, scenes


@settings(max_examples=40)
@given(worlds(), st.integers(0, 2**63), st.integers(0, 10**12))
def test_shapes_stay_in_the_frame_and_move_no_faster_than_their_speed(
    world: ShapesWorld, seed: int, first: int
) -> None:
    batch = scenes(world, seed=seed, first=first, count=5)
    centres = positions(batch, 200)
    tolerance = 1e-9
    assert (centres >= batch.low[:, None] - tolerance).all()
    assert (centres <= batch.high[:, None] + tolerance).all()
    speed = batch.velocity.norm(dim=1)
    assert (speed >= world.speed[0] - tolerance).all()
    assert (speed <= world.speed[1] + tolerance).all()
    assert (centres.diff(dim=1).norm(dim=2) <= speed[:, None] + tolerance).all()


def test_between_bounces_velocity_is_constant_and_a_bounce_reverses_one_component() -> None:
    batch = scenes(DEFAULT, seed=0, first=0, count=50)
    steps = positions(batch, 60).diff(dim=1)
    speed = batch.velocity.abs()[:, None].expand_as(steps)
    straight = torch.isclose(steps.abs(), speed)
    assert straight.float().mean() > 0.8
    assert (steps.abs() <= speed + 1e-9).all()
    assert (steps.sign().diff(dim=1) != 0).any()  # some shapes do bounce
    torch.testing.assert_close(steps[:, 0][straight[:, 0]], batch.velocity[straight[:, 0]])


def test_the_camera_pans_either_way_at_up_to_its_speed() -> None:
    pan = scenes(PANNING, seed=0, first=0, count=400).pan / PANNING.camera
    assert pan.abs().max() <= 1
    shares = pan.histc(4, -1, 1) / len(pan)
    assert (shares - 0.25).abs().max() < 0.1  # five standard deviations of a share


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.integers(0, 100), st.integers(1, 9))
def test_a_scene_depends_on_seed_and_index_alone(seed: int, first: int, count: int) -> None:
    together = scenes(DEFAULT, seed=seed, first=first, count=count)
    last = scenes(DEFAULT, seed=seed, first=first + count - 1, count=1)
    for field in fields(together):
        assert torch.equal(getattr(together, field.name)[-1:], getattr(last, field.name))


def test_what_happens_in_a_scene_is_drawn_independently() -> None:
    """Else some clips would never be seen, such as green squares, or slow shapes that start on the left."""
    world = PANNING.model_copy(update={"caption_dropout": 0.5})
    batch = scenes(world, seed=0, first=0, count=1000)
    start = (batch.start - batch.low) / (batch.high - batch.low)
    angle = torch.atan2(batch.velocity[:, 1], batch.velocity[:, 0])
    named = torch.stack([batch.shape, batch.color, batch.background], dim=1)
    drawn = [named, start, batch.velocity.norm(dim=1, keepdim=True), angle[:, None], batch.pan[:, None]]
    drawn += [batch.phase[:, None], batch.told]
    correlations = torch.corrcoef(torch.cat([one.double() for one in drawn], dim=1).T).fill_diagonal_(0)
    assert correlations.abs().max() < 0.2  # six standard deviations
    for values, count in zip(named.T, (len(world.shapes), len(world.colors), len(world.backgrounds)), strict=True):
        shares = values.bincount(minlength=count) / len(values)
        assert (shares - 1 / count).abs().max() < 0.1
    (slow, fast), speed = world.speed, batch.velocity.norm(dim=1)
    for uniform in (*start.T, angle / (2 * math.pi) + 0.5, (speed - slow) / (fast - slow), batch.phase):
        shares = uniform.histc(4, 0, 1) / len(uniform)
        assert (shares - 0.25).abs().max() < 0.06  # four standard deviations


def test_seeds_and_indices_give_different_scenes() -> None:
    starts = torch.cat([scenes(DEFAULT, seed=seed, first=0, count=100).start for seed in (0, 1)])
    assert len(starts.unique(dim=0)) == 200


def test_a_long_video_is_as_exact_at_its_end_as_at_its_start() -> None:
    batch = scenes(DEFAULT, seed=3, first=0, count=4)
    room = 2 * (batch.high - batch.low)
    assert torch.equal(positions(batch, 50), positions(batch, 20_000)[:, :50])
    frame = 19_999
    folded = (batch.start - batch.low + batch.velocity * frame) % room
    torch.testing.assert_close(positions(batch, frame + 1)[:, -1], batch.low + torch.minimum(folded, room - folded))
