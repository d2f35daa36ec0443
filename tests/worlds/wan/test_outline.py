"""Outlines of Wan's networks: published ones by a folder's name, existing ones by the files of their folder."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from hiar.errors import UserError
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Part
from hiar.worlds.wan.outline import outline
from hiar.worlds.wan.tiny import make_tiny_wan


def billions(base: Path, part: Part) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in outline(base, part).parameters()) / 1e9


@pytest.mark.parametrize(("size", "published"), [("1.3B", 1.4), ("14B", 14.3)])
def test_a_published_model_is_known_by_its_folders_name(size: str, published: float, tmp_path: Path) -> None:
    base = tmp_path / f"Wan2.1-T2V-{size}-Diffusers"
    assert billions(base, TRANSFORMER) == pytest.approx(published, rel=0.02)
    assert billions(base, TEXT) == pytest.approx(5.68, rel=0.01)  # of UMT5-XXL, the encoder


def test_an_existing_model_is_outlined_by_its_own_configurations(tmp_path: Path) -> None:
    base = tmp_path / "Wan2.1-T2V-1.3B"
    make_tiny_wan(base, seed=0)
    for part, folder in ((TRANSFORMER, "transformer"), (TEXT, "text_encoder"), (CODEC, "vae")):
        held = sum(path.stat().st_size for path in (base / folder).glob("*.safetensors"))
        assert 4e9 * billions(base, part) == pytest.approx(held, rel=0.2)  # float32, and the file's header


@pytest.mark.parametrize("part", get_args(Part))
def test_a_folder_that_lacks_a_part_is_not_taken_for_the_published_one(part: Part, tmp_path: Path) -> None:
    """The folder may hold another model, for which a plan of the published one would be wrong."""
    base = tmp_path / "Wan2.1-T2V-1.3B"
    base.mkdir()
    with pytest.raises(UserError, match=r"config\.json: no such file; copy the base model there"):
        billions(base, part)
