"""Fixtures for the tests of Wan: a tiny base model, the golden file's weights, and fakes of the real sizes.

Tests only read them, and copy what they damage.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open
from torch import Tensor

from hiar.worlds.wan.formats.configs import checked
from hiar.worlds.wan.tiny import make_tiny_wan

FILE = Path(__file__).parents[2] / "golden" / "wan_tiny.safetensors"


class Tiny(NamedTuple):
    """A small transformer: its configuration, and its weights by the original's names."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    golden: dict[str, Tensor]  # the whole file


@pytest.fixture(autouse=True)
def transformers_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block transformers as a command does (hiar/late.py), even if another test has imported it."""
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    with safe_open(FILE, "pt") as file:
        sizes = json.loads(file.metadata()["description"])
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    prefix = "weights/model."
    weights = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    config = {
        "num_attention_heads": sizes["heads"],
        "attention_head_dim": sizes["head_dim"],
        "in_channels": sizes["channels"],
        "out_channels": sizes["channels"],
        "text_dim": sizes["text_dim"],
        "freq_dim": sizes["freq_dim"],
        "ffn_dim": sizes["ffn"],
        "num_layers": sizes["layers"],
    }
    return Tiny(checked(config, "golden"), weights, golden)


@pytest.fixture(scope="session")
def write_sparse() -> Callable[[Path, Mapping[str, tuple[int, ...]]], None]:
    """Writes a sparse safetensors file of float32 zeros, which takes no space on the disk."""

    def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        heads, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * math.prod(shape)
            heads[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        header = json.dumps(heads).encode()
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)

    return write


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_wan(folder, seed=0)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of embeddings and fingerprints for the tests, instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
