"""The timeline: how far ahead blocks may be made, and when they begin."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiar.live.timeline import Timeline


@given(
    first=st.integers(1, 12),
    more=st.integers(0, 4),
    fps=st.sampled_from([12, 16, 24]),
    lead=st.floats(0.1, 3),
    acts=st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just("restart")), max_size=12),
)
def test_never_more_than_the_lead_and_a_block_ahead_of_what_is_watched(first, more, fps, lead, acts):
    line = Timeline(first, first + more, fps, lead)
    pictures = [first + more] * 2_000  # frames of each block
    pictures[line.restart()] = first
    for act in acts:
        if act == "restart":
            pictures[line.restart()] = first
            continue
        before = line.until
        assert line.watch(act) == (line.until > before)
        line.made = sum(pictures[: line.until]) / fps
        assert 0 <= line.watched <= line.made
        assert lead - 1e-9 <= line.made - line.watched
        assert line.made - line.watched < lead + (first + 2 * more) / fps + 1e-6
        for block in (line.begun, line.begun + 1, line.until + 3):
            if block >= line.begun:
                assert line.seconds(block) == pytest.approx(sum(pictures[:block]) / fps)


def test_nothing_is_made_while_the_watched_time_stands_still():
    line = Timeline(3, 3, 12, 1.0)
    line.restart()
    assert line.watch(0.0)
    line.made = 1.0
    assert not line.watch(0.0)
    assert not line.watch(math.nan)
    assert not line.watch(math.inf)
    assert not line.watch(-5.0)
    assert line.watch(1e12)
    assert line.watched == 1.0
