"""Networks that take turns on a GPU: only the working one is there, and the results do not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import hiar
from PIL import Image
from students import save_student
from torch import Tensor

from hiar.errors import UserError
from hiar.models.card import Walk
from hiar.models.generator import Generator, load_generator
from hiar.stages import fitting, plan
from hiar.stages.clips import given_latents
from hiar.stages.computing import choose
from hiar.stages.fitting import way_of
from hiar.stages.plan import placed
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout
from hiar.stages.sample import sample_latents
from hiar.stages.stream import clean_blocks, stream_rollout
from hiar.stages.videos import decoded, decoding

HIAR = Walk(order="diagonal", context="output")
PROMPT = "a red disc moves left"
THERE = torch.device("cpu", 0)  # stands for the GPU: the same memory under another name
ASIDE = "cpu"


class Turns:
    """A generator whose networks take turns; checks that only the working one is at THERE, and records the order."""

    def __init__(self, source: Generator) -> None:
        self.source = replace(source, turns=THERE)
        self.networks: dict[str, Any] = {"denoiser": source.denoiser, "text": source.text, "codec": source.codec}
        self.places = dict.fromkeys(self.networks, ASIDE)
        self.worked: list[str] = []
        for name, network in self.networks.items():
            network.to = lambda place, name=name: self.places.update({name: str(place)})
        self._watch("denoiser", source.denoiser.transformer.proj_out)
        self._watch("text", self.networks["text"].words)
        self._watch("codec", self.networks["codec"].enter)

    def _watch(self, name: str, layer: torch.nn.Module) -> None:
        def see(*_: Any) -> None:
            assert self.places == dict.fromkeys(self.networks, ASIDE) | {name: str(THERE)}
            if self.worked[-1:] != [name]:
                self.worked.append(name)

        layer.register_forward_pre_hook(see)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "student"
    save_student(folder)
    return folder


@pytest.fixture
def turns(checkpoint: Path) -> Turns:
    return Turns(load_generator(checkpoint))


@torch.no_grad()
def _streamed(source: Generator) -> tuple[Tensor, Tensor]:
    """Latents and frames of a stream whose prompt changes."""
    rollout = stream_rollout(source, PROMPT, {2: "a blue disc moves up"}, HIAR, 12, 0)
    way = way_of(source, HIAR, rollout, together=True)
    choose(source, HIAR, rollout)
    decode, blocks, pictures = decoding(source), [], []
    for latent in clean_blocks(source, HIAR, rollout, way=way):
        blocks.append(latent)
        pictures.append(decode(latent))
    return torch.cat(blocks, dim=1), torch.cat(pictures)


def test_a_stream_alternates_between_denoiser_and_codec(checkpoint: Path, turns: Turns) -> None:
    offloaded = _streamed(turns.source)
    assert turns.worked == ["text", *["denoiser", "codec"] * 4]
    for one, other in zip(offloaded, _streamed(load_generator(checkpoint)), strict=True):
        assert torch.equal(one, other)


def test_samples_take_one_turn_per_batch(checkpoint: Path, turns: Turns) -> None:
    made = sample_latents(turns.source, [PROMPT], 6, HIAR, 0, range(1))
    pictures = torch.cat(list(decoded(turns.source, made[0])))
    assert turns.worked == ["text", "denoiser", "codec"]
    source = load_generator(checkpoint)
    assert torch.equal(made, sample_latents(source, [PROMPT], 6, HIAR, 0, range(1)))
    assert torch.equal(pictures, torch.cat(list(decoded(source, made[0]))))


def test_a_given_picture_is_encoded_in_the_codecs_turn(turns: Turns, checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    turns.source.embed([PROMPT])  # leaves the text encoder at THERE
    given_latents(turns.source, Request(checkpoint, [PROMPT], 9, image=tmp_path / "a.png"))
    assert turns.places == {"denoiser": ASIDE, "text": ASIDE, "codec": str(THERE)}


def test_a_teacher_takes_its_turn_after_both_prompts(turns: Turns) -> None:
    turns.source.card = turns.source.card.model_copy(update={"stage": "teacher", "solver_steps": 2})
    sample_latents(turns.source, [PROMPT], 6, None, 0, range(1))
    assert turns.worked == ["text", "denoiser"]


def test_decoding_may_use_the_memory_of_waiting_weights(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    source = turns.source
    rollout = make_rollout(source, source.embed([PROMPT]), HIAR, 24, 0, [0])
    denoiser, codec = source.weights()
    walked, room = 70_000, 100_000
    monkeypatch.setattr(fitting, "free_bytes", lambda device: (room + 0.5) / fitting.USABLE)
    monkeypatch.setattr(fitting, "walk_bytes", lambda *_: walked)
    for spared, turn in ((denoiser - codec, source), (0, replace(source, turns=None))):
        monkeypatch.setattr(fitting, "decode_bytes", lambda *_, most=room + spared: (most, 10))
        assert way_of(turn, HIAR, rollout).memory == walked
        monkeypatch.setattr(fitting, "decode_bytes", lambda *_, more=room + spared + 1: (more, 10))
        with pytest.raises(UserError, match="free to use; ask for a smaller"):
            way_of(turn, HIAR, rollout)


def test_weights_that_do_not_fit_are_refused_with_the_remedy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, source = torch.device("cuda"), load_generator(checkpoint)
    denoiser, codec = source.weights()
    assert denoiser == sum(p.nbytes for p in source.denoiser.parameters())
    monkeypatch.setattr(plan, "free_bytes", lambda device: denoiser + codec - 1)
    with pytest.raises(UserError, match="memory are free; give --offload, or take a GPU with more memory"):
        placed(source, gpu, offload=False)
    assert placed(source, gpu, offload=True).device == gpu
    assert source.denoiser.transformer.device.type == "cpu"  # until it is its turn
    monkeypatch.setattr(plan, "free_bytes", lambda device: max(denoiser, codec) - 1)
    with pytest.raises(UserError, match="memory are free; take a GPU with more memory"):
        placed(source, gpu, offload=True)


def test_offload_is_refused_without_a_gpu_or_with_processes(checkpoint: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^--offload: keeps waiting networks out of a GPU's memory"):
            sample_prompts(Request(checkpoint, [PROMPT], 6, offload=True), tmp_path / "out", save_latents=False)
    request = ("--checkpoint", checkpoint, "--prompt", PROMPT, "--frames", 6, "--out", "out", "--processes", 2)
    stderr = hiar("sample", *request, "--offload", folder=tmp_path, code=2).stderr
    assert stderr == "error: --offload: with --processes each network stays on its GPU; leave one of them out\n"
    assert not list(tmp_path.iterdir())
