"""Times the method's original public implementation, from a checkout of it, beside ours; none of its code is kept here.

A separate process imports the checkout, since its packages have names as common as ``utils``. Its weights are random,
like ours. Its text encoder and decoder are replaced by stubs: neither is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.presets import SEED, Preset, Setup
from benchmarks.timing import now
from hiar.config import Order
from hiar.errors import UserError

ORDERS: tuple[Order, ...] = ("step_first", "block_first")
ENTRY = "pipeline/causal_inference.py"
HEADS = 12, 128  # heads and their size, fixed in its caches whatever its model has
TIMESTEPS = 1000


class Reference:
    """The original implementation, in a process at the other end of a pipe."""

    def __init__(self, pipe: Connection, checkout: Path) -> None:
        self.pipe, self.checkout = pipe, checkout

    def seconds(self, order: Order, blocks: int) -> float:
        """Seconds of a walk. Raises UserError if the original implementation fails."""
        return self._ask((order, blocks))

    def facts(self) -> dict[str, str]:
        """The commit that was timed, and its attention kernel."""
        line = ["git", "-C", str(self.checkout), "rev-parse", "HEAD"]
        commit = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
        return {"commit": commit or "unknown", "attention": "flash-attn" if find_spec("flash_attn") else "torch"}

    def _ask(self, task: tuple[Order, int] | None) -> float:
        try:
            self.pipe.send(task)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            answer = "its process has ended"
        if isinstance(answer, str):
            remedy = "; install what its requirements.txt lists" if "No module named" in answer else ""
            raise UserError(f"--reference = {self.checkout}: {answer}{remedy}")
        return answer


@contextmanager
def reference(checkout: Path, setup: Setup, threads: int) -> Iterator[Reference]:
    """Start the process. Raises UserError if the folder is no checkout, or its code cannot build the preset's shape."""
    check_reference(checkout, setup.preset)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, checkout.resolve(), setup.preset, len(setup.text), threads, setup.device.type)
    worker = context.Process(target=_serve, args=arguments, daemon=True)
    worker.start()
    there.close()
    try:
        other = Reference(here, checkout)
        other._ask(None)
        yield other
    finally:
        here.close()
        worker.join()


def check_reference(checkout: Path, preset: Preset) -> None:
    """Raise UserError if this checkout cannot walk this preset."""
    if not (checkout / ENTRY).is_file():
        raise UserError(f"--reference = {checkout}: no {ENTRY} in it; name a checkout of the method's public code")
    if (preset.model.heads, preset.model.head_dim) != HEADS:
        raise UserError(f"--reference: its code is written for {HEADS[0]} heads of {HEADS[1]}; use --preset wan-1.3b")


def _serve(pipe: Connection, checkout: Path, preset: Preset, batch: int, threads: int, device_type: str) -> None:
    """The process's main function: build on request, then run walks until the other end of the pipe is closed."""
    torch.set_num_threads(threads)
    sys.path.insert(0, str(checkout))
    walker = None
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        try:
            while True:
                task = pipe.recv()
                try:
                    if task is None:
                        walker = _build(preset, batch, torch.device(device_type))
                        pipe.send(0.0)
                    else:
                        pipe.send(_walk(walker, preset, batch, torch.device(device_type), *task))
                except (Exception, SystemExit) as error:  # any failure of others' code becomes one line
                    pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        except EOFError:
            return


def _build(preset: Preset, batch: int, device: torch.device) -> Any:
    """The original pipeline object, with a model of the preset's shape and the preset's window."""
    shape, (channels, height, width) = preset.model, preset.latent
    without_gpu = patch("torch.cuda.current_device", lambda: 0) if device.type == "cpu" else nullcontext()
    with without_gpu:  # one of its modules asks for the current GPU on import
        walkers, wrappers = import_module("pipeline.causal_inference"), import_module("utils.wan_wrapper")
    if not find_spec(
        "flash_attn"
    ):  # its cross-attention calls flash-attn without a check; use the fallback that it has elsewhere
        layers: Any = import_module("wan.modules.model")
        layers.flash_attention = import_module("wan.modules.attention").attention
    model = wrappers.CausalWanModel(
        patch_size=(1, shape.patch, shape.patch),
        text_len=shape.text_length,
        in_dim=channels,
        dim=shape.heads * shape.head_dim,
        ffn_dim=shape.ffn,
        freq_dim=shape.freq_dim,
        text_dim=shape.text_dim,
        out_dim=channels,
        num_heads=shape.heads,
        num_layers=shape.layers,
        local_attn_size=preset.window,
    )
    with patch.object(wrappers.CausalWanModel, "from_pretrained", lambda *_, **__: model):
        generator = wrappers.WanDiffusionWrapper(timestep_shift=preset.shift, is_causal=True)
    random = torch.Generator().manual_seed(SEED)
    text = torch.randn(batch, shape.text_length, shape.text_dim, generator=random).to(device, preset.dtype)
    settings = SimpleNamespace(
        denoising_step_list=[TIMESTEPS * (preset.steps - step) // preset.steps for step in range(preset.steps)],
        warp_denoising_step=True,
        num_frame_per_block=preset.block,
        independent_first_frame=False,
        context_noise=0,
    )
    walker = walkers.CausalInferencePipeline(
        settings,
        device,
        generator,
        text_encoder=lambda text_prompts: {"prompt_embeds": text},
        vae=SimpleNamespace(decode_to_pixel=lambda latents, use_cache: latents),
    ).to(device, preset.dtype)
    walker.num_transformer_blocks = shape.layers
    walker.frame_seq_length = (height // shape.patch) * (width // shape.patch)
    for block in generator.model.blocks:
        block.self_attn.max_attention_size = preset.window * walker.frame_seq_length
    return walker.eval().requires_grad_(False)


@torch.no_grad()
def _walk(walker: Any, preset: Preset, batch: int, device: torch.device, order: Order, blocks: int) -> float:
    """Seconds of a walk."""
    channels, height, width = preset.latent
    noise = torch.randn(batch, blocks * preset.block, channels, height, width).to(device, preset.dtype)
    prompts = [""] * batch
    start = now(device)
    if order == "step_first":
        walker.inference_hybrid(noise, prompts, return_latents=True, frame_first_steps=0)
    else:
        walker.inference(noise, prompts, return_latents=True)
    return now(device) - start
