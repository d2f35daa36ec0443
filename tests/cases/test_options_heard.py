"""Every option of `hiar sample` and `hiar stream` takes effect: each has an outcome of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hiar.io.video import write_mp4

Run = Callable[..., str]


@pytest.mark.parametrize("command", ["sample", "stream"])
def test_every_option_takes_effect(command: str, run: Run, mistake: Run, student: Path) -> None:
    request = (command, "--checkpoint", student, "--prompt", "a red disc moves left", "--frames", 6, "--out", "out.mp4")
    Image.new("RGB", (48, 32)).save("small.png")
    write_mp4(Path("short.mp4"), torch.zeros(2, 64, 64, 3, dtype=torch.uint8), 12)
    lines = {
        ("--level", "0.5,0.5"): "--level = (0.5, 0.5): give one number, or 3",
        ("--size", "48x32"): "--size = 48x32: the built-in video world has one size",
        ("--video", "short.mp4"): "short.mp4: has 2 pictures",
        ("--image", "small.png"): "small.png: has 48x32 pixels: should have 64x64",
        ("--context", "shared"): "--order = step_first: shared context is written by",
        ("--order", "diagonal", "--context", "finished"): "--order = diagonal: ",
    }
    if not torch.cuda.is_available():
        lines |= {
            ("--fp8",): "--fp8: needs a Hopper GPU",
            ("--offload",): "--offload: keeps waiting networks out of a GPU's memory",
        }
    for options, line in lines.items():
        assert mistake(*request, *options).startswith(line), options
    run(*request, "--image", "small.png", "--resize")
    assert Path("out.mp4").exists()
