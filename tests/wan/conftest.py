"""A tiny base model for all tests of Wan's parts; tests may read it, and copy what they spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiar.worlds.wan.tiny import make_tiny_wan


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_wan(folder, seed=0)
    return folder
