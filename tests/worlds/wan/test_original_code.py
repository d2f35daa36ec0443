"""The original implementation, if ``WAN_CODE`` names a checkout: it loads what we write, and we load what it saves."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from tiny import relative_error
from transformers import UMT5EncoderModel

from hiar.worlds.wan.formats import sources, text_encoder
from hiar.worlds.wan.formats.autoencoder import open_autoencoder
from hiar.worlds.wan.formats.checking import transformer_shapes
from hiar.worlds.wan.formats.configs import checked, original_config
from hiar.worlds.wan.formats.names import to_original
from hiar.worlds.wan.formats.sources import open_source
from hiar.worlds.wan.formats.text_encoder import open_text_encoder
from hiar.worlds.wan.formats.writing import write_diffusers, write_model, write_original

CODE = os.environ.get("WAN_CODE")
pytestmark = pytest.mark.skipif(CODE is None, reason="WAN_CODE names no checkout of the original implementation")
SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}


def original(name: str) -> ModuleType:
    """A module of its folder wan/modules/, without the other imports of its packages."""
    package = ModuleType("original_wan")
    package.__path__ = [str(Path(str(CODE)) / "wan" / "modules")]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{name}")


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("sizes", [SMALL, {}], ids=["1.3B", "14B"])
def test_the_transformer_has_our_names_at_the_real_sizes(sizes: dict[str, int]) -> None:
    config = checked(sizes, "test")
    with torch.device("meta"):
        theirs = original("model").WanModel.from_config(original_config(config))
    assert shapes(theirs) == {to_original(name): shape for name, shape in transformer_shapes(config).items()}


def test_the_transformer_loads_what_we_write(tmp_path: Path) -> None:
    model: Any = original("model").WanModel(
        dim=24, ffn_dim=8, freq_dim=4, in_dim=4, out_dim=4, num_heads=2, num_layers=2
    )
    for name in ("saved", "ours", "back"):
        (tmp_path / name).mkdir()
    model.save_pretrained(tmp_path / "saved")
    found = open_source(tmp_path / "saved")
    assert found.kind == "wan"
    write_diffusers(found.tensors, found.config, tmp_path / "ours")
    found = open_source(tmp_path / "ours")
    write_original(found.tensors, found.config, tmp_path / "back", shard=100_000)
    again, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    configs = [{name: value for name, value in one.config.items() if name[0] != "_"} for one in (again, model)]
    assert configs[0] == configs[1]


def test_the_converted_text_encoder_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # called on import
    encoder = original("t5").T5Encoder(90, 32, 24, 64, 4, 2, 32, shared_pos=False).eval()
    torch.save(encoder.state_dict(), tmp_path / "t5.pth")
    found, out = open_text_encoder(tmp_path / "t5.pth"), tmp_path / "text_encoder"
    out.mkdir()
    write_model(found.tensors, found.config, out, text_encoder.STEM)
    ours, words = UMT5EncoderModel.from_pretrained(out).eval(), torch.tensor([[5, 80, 7, 1]])
    with torch.no_grad():
        assert relative_error(ours(words).last_hidden_state, encoder(words)) < 1e-5


def test_the_converted_autoencoder_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("einops", reason="the original's autoencoder needs einops")
    autoencoder = original("vae").WanVAE_(dim=8, z_dim=16, temperal_downsample=[False, True, True]).eval()
    torch.save(autoencoder.state_dict(), tmp_path / "vae.pth")
    found, out = open_autoencoder(tmp_path / "vae.pth"), tmp_path / "vae"
    out.mkdir()
    write_model(found.tensors, found.config, out, sources.STEM)
    latents = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        ours = AutoencoderKLWan.from_pretrained(out).decode(latents).sample
        theirs = autoencoder.decode(latents, [torch.zeros(16), torch.ones(16)])
    assert relative_error(ours, theirs.clamp(-1, 1)) < 1e-5
