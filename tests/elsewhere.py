"""A simulated GPU: a torch device whose tensors have shapes and types but no values.

As on a GPU, its tensors cannot be combined with those on the host. Each read of a value by the host, where a real GPU
would synchronise, is recorded. Run as a program, this walks, decodes and trains there and prints what it found; the
device cannot be unregistered, so it needs a process of its own.
"""

from __future__ import annotations

import json
import traceback
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import shared
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.presets import PRESETS, build
from benchmarks.walks import BATCHED, HIAR, SHARED_BATCHED, Walk
from hiar.io.process_group import Ranks
from hiar.rollout.walk import generate

ROOT = Path(__file__).parents[1]
AUTOCAST = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv3d", "scaled_dot_product_attention")
WALKS = [HIAR, Walk("block_first", "finished", "fused"), BATCHED, SHARED_BATCHED]
CASES = {
    "init": {"name": "init", "muon": True},
    "distill, fresh rollouts": {"name": "distill", "muon": True},
    "distill, a replay, flow, bf16": {"name": "distill", "wan": True, "replay": 2, "half": True},
}


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Elsewhere(TorchDispatchMode):
    """Allows tensors on the device within the `with` block. waits: the places where hiar read their values."""

    def __init__(self) -> None:
        super().__init__()
        self.fake, self.waits = FakeTensorMode(allow_non_fake_inputs=True), []
        self.waiting: types.FrameType | None = None  # the call that read the last value

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = kwargs.get("device")
        if there is not None and torch.device(there).type == "elsewhere":
            args, kwargs = tree_map(self._without_values, (args, kwargs))
            with self.fake:
                return func(*args, **kwargs)
        if args and isinstance(args[0], FakeTensor) and args[0].device.type == "elsewhere":
            if func is torch.ops.aten._local_scalar_dense.default:
                self._record_wait()
                return 1.0
            if there is not None:
                self._record_wait()
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)

    def _without_values(self, value: Any) -> Any:
        if isinstance(value, FakeTensor):
            value.constant = None
            return value
        return self.fake.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    def _record_wait(self) -> None:
        own = (frame for frame, _ in traceback.walk_stack(None) if f"{ROOT}/hiar/" in frame.f_code.co_filename)
        frame = next(own, None)
        if frame is None or frame is not self.waiting:  # a tolist() asks here for one value after the other
            place = frame and f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"
            self.waits.append(place or "not in hiar")
        self.waiting = frame


def register() -> torch.device:
    """Register the device and return it. Under autocast it computes in bf16 the operations that GPUs do."""
    backend_registration._setup_privateuseone_for_python_backend("elsewhere", backend_module=Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is made on the host and copied
    register.libraries = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]
    register.libraries[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in AUTOCAST:
        register.libraries[1].impl(name, autocast_to_bf16(getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    return torch.device("elsewhere", 0)


def autocast_to_bf16(operation: Callable[..., Any]) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value

    def compute_in_bf16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("elsewhere", enabled=False):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return compute_in_bf16


class Accelerator:
    """The methods of accelerate's Accelerator that training calls; accelerate's own does not know the device."""

    def __init__(self, device: torch.device, half: bool) -> None:
        self.device, self.half = device, half

    def autocast(self) -> torch.autocast:
        return torch.autocast("elsewhere", torch.bfloat16, enabled=self.half)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, limit: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(list(parameters), limit)


def walks(device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Walks in one process, and a decoder that continues a video."""
    tiny = PRESETS["wan-tiny"]()
    small = replace(tiny, model=tiny.model.model_copy(update={"layers": 1}), window=2 * tiny.block, steps=3)
    here = build(small, torch.device("cpu"), 2)
    with Elsewhere():
        moved = (part.to(device) for part in (here.denoiser, here.codec, here.text))
        there = replace(here, **dict(zip(("denoiser", "codec", "text"), moved, strict=True)))

    def walked(walk: Walk) -> Tensor:
        return generate(there.denoiser, there.rollout(there.preset.grid(walk, 3)), walk.order, passes=walk.passes)

    def decoded() -> Tensor:
        decode, latents = there.codec.decoding(), torch.zeros(1, *there.preset.shape, device=device)
        return torch.cat([decode(latents), decode(latents)], dim=2)

    return {"decoder": decoded} | {walk.name: partial(walked, walk) for walk in WALKS}


def train(device: torch.device, case: dict[str, Any]) -> Tensor:
    """Train at steps late enough to update the student and its average too; returns one of its weights."""
    shared.accelerator_of = lambda case: Accelerator(device, case.half)
    roles, step, _ = shared.make(shared.Case(steps=4, device=device, micro_batch=None, **case), Ranks())
    for number in (2, 3) if case["name"] == "init" else (2,):
        step(number)
    return next(roles["student"].module.parameters())


def report(name: str, compute: Callable[[], Tensor]) -> None:
    """Print a line of JSON: the device of the result, or the error; and every wait for the device."""
    with Elsewhere() as mode:
        try:
            found = str(compute().device)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            found = (
                f"{error} at {[f'{frame.filename}:{frame.lineno}' for frame in where if str(ROOT) in frame.filename]}"
            )
    print(json.dumps({"name": name, "found": found, "waits": mode.waits}), flush=True)


if __name__ == "__main__":
    place = register()
    for name, compute in walks(place).items():
        report(name, torch.no_grad()(compute))
    for name, case in CASES.items():
        report(name, partial(train, place, case))
