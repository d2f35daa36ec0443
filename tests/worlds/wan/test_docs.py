"""Every command of docs/wan.md, on the tiny Wan at a size that a test can afford."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hiar import cli
from hiar.worlds.wan.formats.names import to_original

ROOT = Path(__file__).parents[3]
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "wan.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


def test_the_page_can_be_followed_from_top_to_bottom(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").symlink_to(ROOT / "params.yaml")
    for folder in ("models", "ode_pairs"):
        Path(folder).mkdir()
    Path("models", "Wan2.1-T2V-1.3B-Diffusers").symlink_to(base)
    held = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("models/self_forcing_dmd.pt", "models/hiar.pt"):
        torch.save({"generator_ema": {f"model.{to_original(key)}": value for key, value in held.items()}}, name)
    Path("prompts.txt").write_text("A red fox trots along a snowy ridge.\nRain on a tram window.\n")
    Image.new("RGB", (40, 40), "teal").save("street.png")
    torch.save({"A red fox trots along a snowy ridge.": torch.randn(1, 5, 3, 16, 4, 6)}, "ode_pairs/00000.pt")
    assert len(COMMANDS) == 13
    for line in COMMANDS:
        words = shlex.split(line)
        assert words[0] == "hiar"
        if words[1] == "import":
            words += ["--height", "32", "--width", "48", "--precision", "no"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{line}\n{capfd.readouterr().err}"
    for made in (
        "videos-self-forcing/0001.mp4",
        "videos-hiar/0001.mp4",
        "fox.mp4",
        "on/0000.mp4",
        "still/0000.mp4",
        "models/pairs/manifest.json",
    ):
        assert Path(made).exists(), made
    assert {"again.pt", "hiar-diffusers", "hiar-wan", "drift.json"} <= {path.name for path in tmp_path.iterdir()}
