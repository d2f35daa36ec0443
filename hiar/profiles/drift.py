"""The paper's Drift (Sec. 4.1): its six metrics, four of which are networks that run in an environment of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from hiar.errors import UserError
from hiar.profiles.recipe import Recipe

NAME = "drift"
RECIPE = Recipe("drift", dict.fromkeys(("musiq", "clip_iqa", "dino", "lpips", "saturation", "sharpness"), 1 / 6))
ENVIRONMENT = Path(".venv-vbench")
WEIGHTS = "VBENCH_CACHE_DIR"  # where VBench looks for weights too
FILES = {
    "musiq": "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "clip_iqa": "clip_model/RN50.pt",
    "dino": "dinov2-base/model.safetensors",
    "lpips": "alexnet-owt-7be5be79.pth",
}


def open_profile() -> NoReturn:
    """Raise UserError, which names what is missing to run the networks, and where to read how to get it."""
    folder = Path(os.environ.get(WEIGHTS) or Path.home() / ".cache" / "vbench")
    missing = [] if ENVIRONMENT.is_dir() else [f"the environment {ENVIRONMENT} (make vbench)"]
    missing += [str(folder / name) for name in FILES.values() if not (folder / name).is_file()]
    lacking = f"lacks {', '.join(missing)}" if missing else "its networks are not run by this version"
    raise UserError(f"--profile = {NAME}: {lacking}; docs/scores.md says how to get them, drift-lite needs none")
