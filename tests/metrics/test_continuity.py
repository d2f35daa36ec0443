import pytest
import torch
from shape_worlds import DEFAULT

from hiar.metrics.continuity import border_jump, changes
from hiar.worlds.shapes.render import clips

BLOCK = 3


def steps(levels):
    """One video of uniformly grey frames at these levels."""
    return torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(1, len(levels), 8, 8, 3)


def test_jumps_at_block_borders_raise_border_jump():
    smooth, jumping = steps(list(range(0, 36, 3))), steps([0, 3, 6, 30, 33, 36, 60, 63, 66, 90, 93, 96])
    assert border_jump(changes(smooth), BLOCK).item() == pytest.approx(1)
    assert border_jump(changes(jumping), BLOCK).item() == pytest.approx((24 + 0.25) / (3 + 0.25))


def test_changes_are_means_of_all_pixels_and_colours():
    """Computed in integers, so that only the last division rounds."""
    frames = torch.randint(256, (2, 4, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sums = frames.long().diff(dim=1).abs().sum(dim=(2, 3, 4))
    torch.testing.assert_close(changes(frames), sums.double() / (9 * 7 * 3), rtol=1e-6, atol=0)


def test_jumps_inside_blocks_lower_border_jump():
    assert border_jump(changes(steps([0, 30, 60, 63, 93, 123])), BLOCK).item() < 0.2


def test_border_jump_is_1_with_nothing_to_compare():
    assert border_jump(changes(steps([7] * 9)), BLOCK).item() == 1  # still
    assert border_jump(changes(steps([0, 9, 99])), BLOCK).item() == 1  # one block
    assert border_jump(changes(steps([0, 9, 99])), 1).item() == 1  # borders only
    assert {border_jump(changes(steps([0, 9, 99])), block).dtype for block in (1, 2, 3)} == {torch.float64}


def test_a_first_block_may_be_shorter():
    """Wan's first block of 3 latent frames is 9 pictures, each later one 12."""
    change = torch.zeros(1, 40).double()
    change[0, [8, 20, 32]] = 7.0  # into frames 9, 21 and 33
    assert border_jump(change, 12, 9).item() == pytest.approx((7 + 0.25) / 0.25)
    assert border_jump(change, 12).item() < 1


def test_a_first_block_may_be_longer():
    change = torch.zeros(1, 20).double()
    change[0, [8, 11, 14, 17]] = 7.0  # into frames 9, 12, 15 and 18, and none before
    assert border_jump(change, 3, 9).item() == pytest.approx((7 + 0.25) / 0.25)


def test_the_true_world_has_no_jumps_at_borders():
    frames, _ = clips(DEFAULT, seed=0, first=0, count=64, frames=60)
    assert border_jump(changes(frames), BLOCK).mean().item() == pytest.approx(1, abs=0.03)
