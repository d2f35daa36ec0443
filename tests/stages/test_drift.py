"""Drift as a score of samples: which videos it uses, and what happens to those it cannot measure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.video import open_stream, write_mp4
from hiar.judges.interface import Findings
from hiar.profiles.profile import Profile
from hiar.stages import profile_values
from hiar.stages.drift import check_sizes, drift_of_samples


class Grey:
    """A metric: the grey level of flat videos; black ones have no trend."""

    least_frames = 2

    def __init__(self) -> None:
        self.parts: list[int] = []

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        self.parts.append(frames.shape[1])
        return {"grey": frames.double().mean(dim=(2, 3, 4))}

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        grey = findings["grey"].mean(dim=1)
        trend = grey.where(grey > 30, torch.nan)
        return {"grey_level": grey, "grey_level_floor": grey / 2, "light_trend": trend, "light": grey}


PROFILE = Profile("grey-level", Grey(), {"made by": "tests"}, least_side=16)


def films(folder: Path, *greys: int, frames: int = 4) -> list[Path]:
    paths = [folder / f"{number:04d}.mp4" for number in range(len(greys))]
    for path, grey in zip(paths, greys, strict=True):
        write_mp4(path, torch.full((frames, 16, 32, 3), grey, dtype=torch.uint8), 12)
    return paths


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15)])
def test_a_world_with_one_side_too_small_is_refused(height: int, width: int) -> None:
    check_sizes([PROFILE], max(16, height), max(16, width))
    line = f"^score.profiles: grey-level needs 16 pixels a side, the world has {width}x{height}; leave it out"
    with pytest.raises(UserError, match=line):
        check_sizes([PROFILE], height, width)


def test_undefined_values_are_left_out_of_the_means(tmp_path: Path) -> None:
    found = drift_of_samples(tmp_path, films(tmp_path, 0, 60, 120), [PROFILE], None)
    names = ["grey_level", "grey_level_floor", "grey_level_light_trend"]
    assert [list(row) for row in found.values] == [names[:2], names, names]
    assert list(found.metrics) == names
    score, _, trend = found.metrics.values()
    assert (score["n"], trend["n"]) == (3, 2)
    assert score["mean"] == pytest.approx(60, abs=2)
    assert trend["mean"] == pytest.approx(90, abs=2)
    assert not any(math.isnan(value) for row in found.values for value in row.values())
    assert found.facts == {"grey-level": {"made by": "tests"}}


def test_a_video_that_cannot_be_measured_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    paths, values = films(tmp_path, 60, 90, 120), tmp_path / "kept" / "values.jsonl"
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    with pytest.raises(UserError, match=r"0001\.mp4: is "):
        drift_of_samples(tmp_path, paths, [PROFILE], values)
    assert [json.loads(line)["video"] for line in values.read_text().splitlines()] == ["0000.mp4", "0002.mp4"]


@pytest.mark.parametrize(("pixels", "parts"), [(5 * 16 * 32, [4]), (2 * 16 * 32, [2, 2]), (16 * 32 - 1, [1] * 4)])
def test_parts_hold_a_limited_number_of_pixels_and_at_least_one_frame(
    pixels: int, parts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_values, "PIXELS", pixels)
    observer = Grey()
    drift_of_samples(tmp_path, films(tmp_path, 60), [replace(PROFILE, observer=observer)], None)
    assert observer.parts == parts


def test_progress_has_a_total_only_if_all_headers_give_a_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = films(tmp_path, 60, 90)
    drift_of_samples(tmp_path, paths, [PROFILE], None)
    assert f"score {tmp_path}: 8/8 frames in " in capsys.readouterr().err
    with open_stream(paths[1], 16, 32, 12) as add:
        add(torch.full((4, 16, 32, 3), 90, dtype=torch.uint8))
    drift_of_samples(tmp_path, paths, [PROFILE], None)
    assert f"score {tmp_path}: 8 frames in " in capsys.readouterr().err
