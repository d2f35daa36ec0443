"""Checkpoint folders: what is saved is loaded again, and what is broken is named in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from shape_worlds import DEFAULT

from hiar.config import Model, Schedule, Video
from hiar.errors import UserError
from hiar.models.attention import Bidirectional
from hiar.models.card import Card, Walk
from hiar.models.denoiser import build_denoiser
from hiar.models.generator import Generator, load_generator
from hiar.rollout.cell import OURS
from hiar.worlds.shapes import open_world
from hiar.worlds.shapes.captions import vocabulary
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.shapes.text import build_word_encoder

MODEL = Model(
    layers=1,
    heads=2,
    head_dim=12,
    ffn=16,
    freq_dim=8,
    patch=8,
    prediction="x0",
    coordinates=True,
    text_dim=8,
    text_length=12,
)


@pytest.fixture
def generator() -> Generator:
    card = Card(
        stage="distill",
        variant="hiar",
        seed=3,
        walk=Walk(order="step_first", context="output"),
        guidance=1.5,
        solver_steps=8,
        prediction=MODEL.prediction,
        coordinates=MODEL.coordinates,
        world=DEFAULT,
        video=Video(frames=6, block=3, window=6, sink_blocks=0),
        schedule=Schedule(teacher_shift=4.0, student_shift=4.0, student_steps=4, renoise="sde"),
        conventions=OURS,
        precision="no",
    )
    codec = PatchCodec(patch=8, channels=4, width=8, depth=1)
    text = build_word_encoder(vocabulary(DEFAULT), MODEL.text_length, MODEL.text_dim, seed=0)
    return Generator(card, build_denoiser(MODEL, codec.channels, seed=0), text, codec)


@pytest.fixture
def folder(generator: Generator, tmp_path: Path) -> Path:
    generator.save(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_saved_generator_is_loaded_unchanged(generator: Generator, folder: Path) -> None:
    loaded = load_generator(folder)
    assert loaded.card == generator.card
    prompts = ["a red disc moves", ""]
    x = torch.randn(2, *loaded.latent_size[:1], 3, *loaded.latent_size[1:])
    sigma = torch.tensor([0.4, 0.9])
    outputs = [one.denoiser(x, sigma, one.embed(prompts), Bidirectional()) for one in (generator, loaded)]
    assert torch.equal(*outputs)
    assert not any(p.requires_grad for network in (loaded.denoiser, loaded.text) for p in network.parameters())


def test_the_transformer_is_saved_in_diffusers_format(folder: Path) -> None:
    files = {path.name for path in (folder / "transformer").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert json.loads((folder / "transformer" / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"


def test_prompts_are_embedded_in_the_denoisers_dtype(generator: Generator) -> None:
    generator.denoiser.cast(torch.bfloat16)
    assert generator.embed(["a red disc moves"]).dtype == generator.embed_nothing().dtype == torch.bfloat16


def test_capitals_and_punctuation_do_not_change_embeddings(generator: Generator) -> None:
    plain, written, other = generator.embed(["a red disc moves", "A Red disc, moves.", "a blue disc moves"])
    assert torch.equal(plain, written)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_saved(generator: Generator, value: float, tmp_path: Path) -> None:
    with torch.no_grad():
        generator.denoiser.transformer.proj_out.weight[1, 2] = value
    with pytest.raises(UserError, match=r"transformer: proj_out\.weight: 1 of \d+ values are not finite"):
        generator.save(tmp_path)
    assert not list(tmp_path.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rename_tensor(path: Path, old: str | None, new: str) -> None:
    """Rename a tensor in the file, or add one under a new name where ``old`` is None."""
    tensors = load_file(path)
    tensors[new] = torch.zeros(1) if old is None else tensors.pop(old)
    save_file(tensors, path)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_more_channels(folder: Path) -> None:
    """Save a transformer that reads the codec's latents and writes others."""
    config = WanTransformer3DModel.load_config(folder)
    WanTransformer3DModel.from_config(config | {"out_channels": config["out_channels"] + 1}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "generator.json").unlink(), r"generator\.json: no such file; name a checkpoint folder"),
        (
            lambda f: edit(f / "generator.json", stage="oracle"),
            r"generator\.json: stage = 'oracle': .*make the checkpoint again",
        ),
        (
            lambda f: truncate(f / "transformer" / "diffusion_pytorch_model.safetensors"),
            r"transformer: cannot be loaded",
        ),
        (
            lambda f: truncate(f / "text_encoder" / "diffusion_pytorch_model.safetensors"),
            r"text_encoder: cannot be loaded",
        ),
        (
            lambda f: rename_tensor(f / "transformer" / "diffusion_pytorch_model.safetensors", "proj_out.bias", "more"),
            r"transformer: cannot be loaded \(missing weights: proj_out\.bias\)",
        ),
        (
            lambda f: rename_tensor(f / "transformer" / "diffusion_pytorch_model.safetensors", None, "more"),
            r"transformer: cannot be loaded \(unexpected weights: more\)",
        ),
        (
            lambda f: edit(f / "transformer" / "config.json", ffn_dim=32),
            r"transformer: cannot be loaded .*of another shape",
        ),
        (
            lambda f: edit(f / "generator.json", coordinates=False),
            r"in_channels = 6: should match the codec beside it and the card: 4",
        ),
        (
            lambda f: build_word_encoder(vocabulary(DEFAULT), MODEL.text_length, 16, seed=0).save(f / "text_encoder"),
            r"text_dim = 8: should match the text encoder beside it: 16",
        ),
        (lambda f: truncate(f / "codec" / "codec.safetensors"), r"codec\.safetensors: does not fit"),
        (
            lambda f: edit(f / "generator.json", world=DEFAULT.model_dump(mode="json") | {"size": 72}),
            r"generator\.json: world: 72x72 pixels: 9x9 latent pixels do not divide into tokens of 8x8; make the",
        ),
        (
            lambda f: edit(f / "generator.json", world=DEFAULT.model_dump(mode="json") | {"size": 68}),
            r"generator\.json: world: 68x68 pixels: is not a multiple of the codec's patch of 8 pixels; make the",
        ),
        (
            lambda f: with_more_channels(f / "transformer"),
            r"out_channels = 5: should match the codec beside it: 4; the parts are not of one checkpoint",
        ),
    ],
)
def test_damage_is_named_in_one_line(folder: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_generator(folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    """They may run code."""
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="transformer: cannot be loaded"):
        load_generator(folder)


def test_loading_leaves_the_librarys_verbosity_as_it_was(folder: Path) -> None:
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        load_generator(folder)
        truncate(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        with pytest.raises(UserError, match="transformer: cannot be loaded"):
            load_generator(folder)
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)


def test_unknown_words_and_long_prompts_are_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"prompt 'a rde disc': .*the word 'rde'; did you mean 'red'\?"):
        generator.embed(["a rde disc"])
    with pytest.raises(UserError, match=r"has 13 words; the model reads at most 12"):
        generator.embed(["a " * 13])


def test_words_keep_their_places(generator: Generator) -> None:
    with torch.no_grad():
        one, other = generator.embed(["red disc"]), generator.embed(["disc red"])
    assert not torch.allclose(one, other)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_denoiser(MODEL, 4, seed=5).state_dict()
    torch.manual_seed(2)
    second = build_denoiser(MODEL, 4, seed=5).state_dict()
    other = build_denoiser(MODEL, 4, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["transformer.proj_out.weight"], other["transformer.proj_out.weight"])


def test_word_embeddings_depend_on_the_seed_alone() -> None:
    first, again, other = (open_world(DEFAULT).new_text(MODEL, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["words.weight"], other["words.weight"])
