"""The contact sheet: which moment of which video is in each cell."""

import numpy as np
import torch

from hiar.report.sheet import CELL, EMPTY, GAP, HEAD, LABEL, contact_sheet


def video(frames):
    """Each frame has one grey level, 10 times its number."""
    return (10 * torch.arange(frames)).to(torch.uint8)[:, None, None, None].expand(frames, 8, 8, 3)


def cells(sheet, rows, columns):
    return [
        [sheet[HEAD + r * (CELL + GAP) :, GAP + LABEL + c * (CELL + GAP) :][:CELL, :CELL] for c in range(columns)]
        for r in range(rows)
    ]


def test_moments_are_of_the_longest_video_from_its_first_frame_to_its_last():
    sheet = contact_sheet("a prompt", [("long", video(21)), ("short", video(8))], 5, 4)
    long, short = cells(sheet, 2, 5)
    assert [int(cell.mean()) for cell in long] == [0, 50, 100, 150, 200]
    assert [int(cell.mean()) for cell in short[:2]] == [0, 50]
    # The first empty cell says when the video ended; the others are blank.
    assert (short[2] != EMPTY).any()
    assert (short[2][0, 0] == EMPTY).all()
    for cell in short[3:]:
        assert (cell == EMPTY).all()
    assert [int(cell.mean()) for cell in cells(contact_sheet("", [("one", video(3))], 1, 4), 1, 1)[0]] == [0]


def test_times_are_in_seconds():
    """The same frames at another rate differ in the times alone."""
    slow, fast = (contact_sheet("a prompt", [("long", video(21))], 5, fps) for fps in (4, 8))
    foot = HEAD + CELL + GAP
    assert np.array_equal(slow[:foot], fast[:foot])
    assert not np.array_equal(slow[foot:], fast[foot:])


def test_times_are_those_of_the_frames_shown_and_of_the_end():
    """Twice the frames at twice the rate: the same moments, and the same end of the shorter video."""
    one = contact_sheet("", [("long", video(21)), ("short", video(8))], 5, 4)
    other = contact_sheet("", [("long", video(41)), ("short", video(16))], 5, 8)
    foot = HEAD + 2 * (CELL + GAP)
    assert np.array_equal(one[foot:], other[foot:])
    assert np.array_equal(cells(one, 2, 5)[1][2], cells(other, 2, 5)[1][2])


def test_a_moment_shows_the_nearest_frame_unless_the_video_has_ended():
    sheet = contact_sheet("", [("short", video(7)), ("long", video(12)), ("shorter", video(4))], 4, 4)
    short, long, shorter = cells(sheet, 3, 4)
    assert [int(cell.mean()) for cell in long] == [0, 40, 70, 110]  # the frames nearest to 0, 3.67, 7.33 and 11
    assert [(cell != EMPTY).any() for cell in short] == [True, True, True, False]
    assert int(short[1].mean()) == 40
    assert (shorter[1][0, 0] == EMPTY).all()


def test_detail_finer_than_a_cell_is_averaged() -> None:
    """Stripes one pixel wide become grey; subsampling would make them a pattern."""
    stripes = torch.zeros(1, 3 * CELL, 3 * CELL, 3, dtype=torch.uint8)
    stripes[:, :, ::3] = 240
    ((cell,),) = cells(contact_sheet("", [("stripes", stripes)], 1, 4), 1, 1)
    assert abs(cell.astype(float) - 80).max() < 20


def test_names_stand_beside_their_videos():
    one, other = (contact_sheet("", [("a", video(2)), (name, video(2))], 2, 4) for name in ("b", "c"))
    rows = [slice(HEAD + r * (CELL + GAP), HEAD + r * (CELL + GAP) + CELL) for r in range(2)]
    assert [np.array_equal(one[row], other[row]) for row in rows] == [True, False]
    assert (one[rows[0], :LABEL] != one[rows[1], :LABEL]).any()
