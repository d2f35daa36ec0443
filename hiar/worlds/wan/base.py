"""The base model's folder in diffusers' layout: its parts, its index, and the conversion of the original's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from hiar.errors import UserError
from hiar.io.artifacts import unfinished
from hiar.io.files import write_json
from hiar.io.free import require_room
from hiar.worlds.wan.formats import sources, text_encoder
from hiar.worlds.wan.formats.autoencoder import open_autoencoder
from hiar.worlds.wan.formats.sources import open_source
from hiar.worlds.wan.formats.text_encoder import open_text_encoder
from hiar.worlds.wan.formats.writing import write_diffusers, write_model

# The original's files beside its transformer.
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CODEC_FILE = "Wan2.1_VAE.pth"
TOKENIZER = Path("google") / "umt5-xxl"


def convert_base(source: Path, out: Path) -> None:
    """Convert the original's folder to diffusers' layout in a new folder; tensors keep type and bits.

    Raises UserError when a part is missing, broken or incomplete, or the disk is too full; nothing is then written.
    """
    transformer = open_source(source)
    if transformer.kind != "wan":
        raise UserError(f"{source}: is in diffusers' layout already; use it as it is")
    tokenizer = source / TOKENIZER
    if not (tokenizer / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer / 'tokenizer.json'}: no such file; copy the whole folder of the original Wan2.1")
    text, codec = open_text_encoder(source / TEXT_FILE), open_autoencoder(source / CODEC_FILE)
    if out.exists():
        raise UserError(f"--out = {out}: exists already; remove it or choose another name")
    require_room(out, sum(one.nbytes for part in (transformer, text, codec) for one in part.tensors.values()))
    with unfinished(out, {"base": str(source.resolve())}) as partial:
        for name in ("transformer", "text_encoder", "vae", "tokenizer"):
            shutil.rmtree(partial / name, ignore_errors=True)  # left by an interrupted conversion
        for name in ("transformer", "text_encoder", "vae"):
            (partial / name).mkdir()
        write_diffusers(transformer.tensors, transformer.config, partial / "transformer")
        write_model(text.tensors, text.config, partial / "text_encoder", text_encoder.STEM)
        write_model(codec.tensors, codec.config, partial / "vae", sources.STEM)
        shutil.copytree(tokenizer, partial / "tokenizer", copy_function=shutil.copyfile)
        write_index(partial)


def write_index(folder: Path) -> None:
    """Write scheduler/ and model_index.json: what diffusers' WanPipeline needs beside the parts."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "WanPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
            # of Wan2.2, which has a second expert
            "transformer_2": [None, None],
            "boundary_ratio": None,
            "expand_timesteps": False,
        },
    )
