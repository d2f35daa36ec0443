"""The memory that `hiar sample` predicts, against the resident memory of its process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import environment, hiar
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from shared import runtime

from hiar.errors import UserError
from hiar.io import free
from hiar.noise import seeded
from hiar.worlds.wan.formats.loading import load_transformer
from hiar.worlds.wan.text import load_text_encoder

# By default malloc keeps freed memory, and resident memory is 1.5 times the live memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
PROGRAM = """
import json, sys
from pathlib import Path
import psutil, torch
import transformers
from hiar.stages.fitting import way_of
from hiar.stages.plan import load_sampler
from hiar.stages.rollouts import make_rollout
from hiar.stages.sample import sample_latents
from hiar.stages.videos import decoded

def most():  # bytes, since it was asked last
    lines = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(2)
folder, prompt, frames = Path(sys.argv[1]), "A red panda climbs a tree", 24  # so that all caches fill
source = load_sampler(folder, torch.device("cpu"))
rollout = make_rollout(source, source.embed([prompt]), source.card.walk, frames, 0, [0])
way = way_of(source, source.card.walk, rollout)
predicted = sum(source.weights()) + way.memory
del source, rollout
most()
empty = psutil.Process().memory_info().rss
source = load_sampler(folder, torch.device("cpu"))
latents = sample_latents(source, [prompt], frames, source.card.walk, 0, range(1), way=way)
print(json.dumps([predicted, most() - empty]))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_what_was_predicted(base: Path, tmp_path: Path) -> None:
    """With some 900 MB of weights, caches and activations."""
    shutil.copytree(base, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "transformer")
    sizes = {"num_attention_heads": 6, "attention_head_dim": 128, "ffn_dim": 1024, "num_layers": 4, "text_dim": 32}
    with seeded("denoiser weights", 0):
        WanTransformer3DModel(**sizes).save_pretrained(tmp_path / "base" / "transformer")
    size = ("--height", 256, "--width", 448, "--precision", "no")
    hiar("import", "base/transformer", "--base", "base", "--as", "hiar", *size, "--out", "student", folder=tmp_path)
    run = [sys.executable, "-c", PROGRAM, "student"]
    done = subprocess.run(run, cwd=tmp_path, env=environment() | MALLOC, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted, resident = json.loads(done.stdout)
    assert predicted > 500e6
    assert resident == pytest.approx(predicted, rel=0.15)


SHARDED = """
import json, sys
from pathlib import Path
import torch
from hiar.config import Runtime
from hiar.io.process_group import joined
from hiar.models.denoiser import Denoiser
from hiar.training import parallel
from hiar.worlds.wan.formats.loading import load_transformer

def own():  # bytes of memory that is no file's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watched(*arguments):
    cast(*arguments)
    seen.append(own() - empty)

cast, parallel.cast_weights = parallel.cast_weights, watched
with joined(Runtime.model_validate_json(sys.argv[2])) as ranks:
    parallel.shard(torch.nn.Linear(2, 2), ranks)  # what is loaded for that is no network's
    empty, seen = own(), []
    network = Denoiser(load_transformer(Path(sys.argv[1])), "flow", coordinates=False).requires_grad_(False)
    loaded = own() - empty
    parallel.shard(network, ranks, dtype=torch.bfloat16)
    print(json.dumps([loaded, max(seen), own() - empty]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_network_is_sharded_from_its_file_block_by_block(tmp_path: Path) -> None:
    """So a network of 57 GB in fp32, computed in bf16, is never whole in memory, in either dtype."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 128, "ffn_dim": 1024, "num_layers": 8, "text_dim": 32}
    with torch.device("meta"):
        network = WanTransformer3DModel(**sizes)
    network.to_empty(device="cpu").load_state_dict(
        {name: torch.full(value.shape, 0.01) for name, value in network.state_dict().items()}
    )
    network.save_pretrained(tmp_path)
    size = (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    run = [sys.executable, "-c", SHARDED, str(tmp_path), runtime(1, half=True).model_dump_json()]
    done = subprocess.run(run, env=environment() | MALLOC, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, most, held = json.loads(done.stdout)
    assert size > 100e6
    assert loaded < 0.05 * size
    assert held == pytest.approx(size / 2, rel=0.15)  # a single process holds all of it
    assert most < held + 0.15 * size


def test_networks_that_do_not_fit_in_memory_are_refused_before_they_are_read(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free, "free_bytes", lambda device: 1000)
    in_full = partial(load_transformer, dtype=torch.float32)
    for load, folder in ((in_full, base / "transformer"), (load_text_encoder, base)):
        with pytest.raises(UserError, match=r"takes \S+ GB of memory, 1 kB are free; end other programs"):
            load(folder)


def test_a_text_encoder_that_a_gpu_has_no_room_for_computes_on_the_cpu(
    base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    size = sum(parameter.nbytes for parameter in load_text_encoder(base, dtype=torch.bfloat16).parameters())
    monkeypatch.setattr("hiar.worlds.wan.text.free_bytes", lambda device: size - 1)
    encoder = load_text_encoder(base, "meta", torch.bfloat16)  # a device that exists everywhere
    assert encoder.model.device.type == "cpu" and len(encoder.rows(["A red panda"])) == 1
    assert "memory are free: it computes on the CPU" in capfd.readouterr().err
    monkeypatch.setattr("hiar.worlds.wan.text.free_bytes", lambda device: size)
    assert load_text_encoder(base, "meta", torch.bfloat16).model.device.type == "meta"
