"""The original's text encoder and autoencoder, as transformers and diffusers load them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from safetensors.torch import load_file
from tiny import relative_error
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from hiar.errors import UserError
from hiar.worlds.wan import base as base_module
from hiar.worlds.wan.base import CODEC_FILE, TEXT_FILE, convert_base
from hiar.worlds.wan.formats import sources, text_encoder
from hiar.worlds.wan.formats.autoencoder import open_autoencoder
from hiar.worlds.wan.formats.sources import open_source
from hiar.worlds.wan.formats.text_encoder import open_text_encoder
from hiar.worlds.wan.formats.writing import write_model, write_original
from hiar.worlds.wan.text import load_text_encoder, pad

# transformers -> original, deliberately written out a second time
TEXT = {
    r"^shared\.": "token_embedding.",
    r"^encoder\.final_layer_norm\.": "norm.",
    r"^encoder\.block\.": "blocks.",
    r"layer\.0\.SelfAttention\.relative_attention_bias": "pos_embedding.embedding",
    r"layer\.0\.SelfAttention\.": "attn.",
    r"layer\.0\.layer_norm": "norm1",
    r"layer\.1\.layer_norm": "norm2",
    r"layer\.1\.DenseReluDense\.wi_0": "ffn.gate.0",
    r"layer\.1\.DenseReluDense\.wi_1": "ffn.fc1",
    r"layer\.1\.DenseReluDense\.wo": "ffn.fc2",
}
VIDEO = {
    r"^quant_conv": "conv1",
    r"^post_quant_conv": "conv2",
    r"coder\.conv_in": "coder.conv1",
    r"coder\.norm_out": "coder.head.0",
    r"coder\.conv_out": "coder.head.2",
    r"mid_block\.attentions\.0": "middle.1",
    r"mid_block\.resnets\.0": "middle.0",
    r"mid_block\.resnets\.1": "middle.2",
    r"down_blocks": "downsamples",
    r"up_blocks\.(\d)\.resnets\.(\d)": lambda at: f"upsamples.{4 * int(at[1]) + int(at[2])}",
    r"up_blocks\.(\d)\.upsamplers\.0": lambda at: f"upsamples.{4 * int(at[1]) + 3}",
    r"conv_shortcut": "shortcut",
    r"(upsamples|downsamples|middle)(\.\d+)\.norm1": r"\1\2.residual.0",
    r"(upsamples|downsamples|middle)(\.\d+)\.conv1": r"\1\2.residual.2",
    r"(upsamples|downsamples|middle)(\.\d+)\.norm2": r"\1\2.residual.3",
    r"(upsamples|downsamples|middle)(\.\d+)\.conv2": r"\1\2.residual.6",
}  # fmt: skip


def renamed(state: dict[str, Tensor], rules: dict) -> dict[str, Tensor]:  # type: ignore[type-arg]
    names = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules.items():
            new = re.sub(pattern, replacement, new)
        names[new] = tensor
    return names


@pytest.fixture(scope="module")
def encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=90,
        d_model=32,
        d_kv=6,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config).bfloat16().eval()


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=8, z_dim=16).eval()


def test_the_original_text_encoder_is_converted(encoder: UMT5EncoderModel, tmp_path: Path) -> None:
    state = {name: one for name, one in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"}
    original = renamed(state, TEXT)
    assert "blocks.1.ffn.gate.0.weight" in original
    torch.save(original, tmp_path / "t5.pth")
    drawn = torch.get_rng_state()
    found = open_text_encoder(tmp_path / "t5.pth")
    assert torch.equal(torch.get_rng_state(), drawn)  # no weights are initialised: of UMT5-XXL, 23 GB
    out = tmp_path / "text_encoder"
    out.mkdir()
    write_model(found.tensors, found.config, out, text_encoder.STEM, shard=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    result: Any = UMT5EncoderModel.from_pretrained(out, output_loading_info=True)
    loaded, info = result
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == torch.bfloat16
    ours, theirs = loaded.state_dict(), encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
    words = torch.tensor([[5, 80, 7, 1]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(words).last_hidden_state, encoder(words).last_hidden_state)
    assert json.loads((out / "config.json").read_text())["d_kv"] == 6

    del original["blocks.1.norm2.weight"]
    torch.save(original, tmp_path / "t5.pth")
    with pytest.raises(UserError, match=r"t5\.pth: lacks 1 tensor \(encoder\.block\.1\.layer\.1\.layer_norm\.weight\)"):
        open_text_encoder(tmp_path / "t5.pth")


def test_the_original_autoencoder_is_converted(autoencoder: AutoencoderKLWan, tmp_path: Path) -> None:
    original = renamed(autoencoder.state_dict(), VIDEO)
    assert "decoder.upsamples.4.shortcut.weight" in original
    assert "decoder.middle.1.to_qkv.weight" in original
    torch.save(original, tmp_path / "vae.pth")
    drawn = torch.get_rng_state()
    found = open_autoencoder(tmp_path / "vae.pth")
    assert torch.equal(torch.get_rng_state(), drawn)  # nor are any here
    out = tmp_path / "vae"
    out.mkdir()
    write_model(found.tensors, found.config, out, sources.STEM)
    loaded, info = AutoencoderKLWan.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours, theirs = loaded.state_dict(), autoencoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
    assert loaded.config.latents_mean == list(autoencoder.config.latents_mean)

    torch.save(original | {"conv3.bias": torch.zeros(2)}, tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"vae\.pth: has a surplus of 1 tensor \(conv3\.bias\)"):
        open_autoencoder(tmp_path / "vae.pth")


def test_files_of_other_networks_are_refused(encoder: UMT5EncoderModel, tmp_path: Path) -> None:
    torch.save({"decoder.upsamples.x.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"holds no UMT5 encoder of the original Wan \(but decoder\.upsamples"):
        open_text_encoder(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"holds no autoencoder of Wan 2\.1"):
        open_autoencoder(tmp_path / "other.pth")
    of_wan_2_2 = AutoencoderKLWan(base_dim=8, z_dim=8).state_dict()
    torch.save(renamed(of_wan_2_2, VIDEO), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"holds no autoencoder of Wan 2\.1"):
        open_autoencoder(tmp_path / "other.pth")


def interrupted(_: Path) -> None:
    raise KeyboardInterrupt


def test_an_original_folder_becomes_a_base(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base in the original's layout, converted back: every tensor as it was, and diffusers loads it."""
    theirs = tmp_path / "Wan2.1-T2V"
    theirs.mkdir()
    found = open_source(base)
    write_original(found.tensors, found.config, theirs)
    for part, name, rules in (
        ("text_encoder/model", TEXT_FILE, TEXT),
        ("vae/diffusion_pytorch_model", CODEC_FILE, VIDEO),
    ):
        torch.save(renamed(load_file(base / f"{part}.safetensors"), rules), theirs / name)
    shutil.copytree(base / "tokenizer", theirs / "google" / "umt5-xxl")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base_module, "write_index", interrupted)
        convert_base(theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert_base(theirs, tmp_path / "out")  # in place of what the failed call has left
    assert not list(tmp_path.glob("out.*"))
    for name in ("transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (base, tmp_path / "out"))
        assert before.keys() == after.keys(), name
        assert all(torch.equal(before[key], after[key]) for key in before), name
    prompt = "A red fox trots along a snowy ridge."
    ours = pad(load_text_encoder(tmp_path / "out").rows([prompt]))
    assert relative_error(ours, pad(load_text_encoder(base).rows([prompt]))) < 1e-6
    scheduler = WanPipeline.from_pretrained(tmp_path / "out").scheduler
    assert isinstance(scheduler, UniPCMultistepScheduler)
    published = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2}
    assert published.items() <= scheduler.config.items()

    for place, words in ((tmp_path / "out", "is in diffusers' layout already; use it as it is"), (theirs, "exists")):
        with pytest.raises(UserError, match=words):
            convert_base(place, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"again: needs 0.00\d+ GB, 0.0001 GB"):
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**5))
        convert_base(theirs, tmp_path / "again")
    assert not list(tmp_path.glob("again*"))
    for spoil, words in (
        ((theirs / CODEC_FILE).unlink, "Wan2.1_VAE.pth: no such file"),
        ((theirs / "google" / "umt5-xxl" / "tokenizer.json").unlink, "tokenizer.json: no such file"),
    ):
        spoil()
        with pytest.raises(UserError, match=words):
            convert_base(theirs, tmp_path / "again")
    assert not list(tmp_path.glob("again*"))
