"""The figures shown while a video plays, of its last frame and of its last two seconds."""

from __future__ import annotations

import shutil

import pytest
import torch
from commands import ROOT
from students import save_student

from hiar.live.drift import open_figures
from hiar.metrics.drift import saturation, sharpness
from hiar.models.generator import load_generator
from hiar.worlds.shapes.render import clips

BLOCK, TWO_SECONDS = 3, 24  # frames


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "student"
    save_student(folder)
    return load_generator(folder)


def test_the_judge_sees_the_last_two_seconds_and_the_prompt_of_each_block(source, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    figures = open_figures(source, tmp_path / "params.yaml")
    videos, captions = clips(source.card.world, seed=3, first=0, count=2, frames=60)
    noise = torch.randint(256, (TWO_SECONDS, *videos.shape[2:]), dtype=torch.uint8)
    pictures = torch.cat([videos[0, :30], noise, videos[1]])
    prompts = [captions[0]] * 30 + [captions[0]] * TWO_SECONDS + [captions[1]] * 60
    good = []
    for start in range(0, len(pictures), BLOCK):
        part = pictures[start : start + BLOCK]
        values = figures(prompts[start], part)
        assert values["saturation"] == pytest.approx(saturation(part[None])[0, -1].item())
        assert values["sharpness"] == pytest.approx(sharpness(part[None])[0, -1].item())
        good.append(values.get("good"))
    blocks = TWO_SECONDS // BLOCK
    assert good[0] is None  # too short for the judge
    assert good[1:10] == [1.0] * 9
    fading = [1 - made / blocks for made in range(1, blocks + 1)]
    assert good[10 : 10 + blocks] == pytest.approx(fading)
    assert good[10 + blocks : 10 + 2 * blocks] == pytest.approx([1 - share for share in fading])
    assert good[10 + 2 * blocks :] == [1.0] * (20 - blocks)


def test_without_params_there_is_no_judge(source, tmp_path):
    figures = open_figures(source, tmp_path / "params.yaml")
    for _ in range(4):
        assert figures("a red disc moves", torch.zeros(BLOCK, 64, 64, 3, dtype=torch.uint8)) == {
            "saturation": 0.0,
            "sharpness": 0.0,
        }
