"""Our side of the networks that score frames: one process for all videos, which are sent part by part."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hiar.errors import RunFailed
from hiar.vbench.asking import how_ended, lend, open_environ
from hiar.vbench.environment import Environment

DRIFT = "drift"  # the networks' purpose, as `hiar vbench doctor` calls it
NETWORKS = Path(__file__).with_name("networks.py")
_ALEXNET = "torchvision_model/alexnet-owt-7be5be79.pth"
FILES = (
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "clip_model/RN50.pt",
    "dinov2-base/config.json",
    "dinov2-base/model.safetensors",
    _ALEXNET,
)
PACKAGES = ("pyiqa", "transformers", "torchmetrics", "torchvision")
VERSIONS = (*PACKAGES, "torch", "numpy", "timm", "openai-clip", "opencv-python-headless")  # that values depend on


class Networks:
    """The networks in a process of VBench's environment, which starts when first asked and ends with this object.

    weights: the folder of weights. threads: used on a CPU.
    """

    def __init__(self, environment: Environment, weights: Path, device: str, threads: int) -> None:
        self._environment, self._weights, self._device, self._threads = environment, weights, device, threads
        self._home = TemporaryDirectory(prefix="hiar-drift-")
        self._log = Path(self._home.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, pixels: bytes, shape: Sequence[int], before: bool) -> dict[str, list[float]]:
        """Values by metric of frames uint8 of ``shape`` (F, H, W, 3); ``before``: the first one precedes this part.

        ``musiq`` and ``clip_iqa`` per frame; ``dinov2`` and ``lpips`` per pair of consecutive frames.
        Raises RunFailed when the process ends, or a value is not finite.
        """
        values: dict[str, list[float]] = self._ask({"shape": list(shape), "before": before}, pixels)["values"]
        for name, found in values.items():
            if not all(map(math.isfinite, found)):
                raise RunFailed(f"{DRIFT}: {name} of a frame is not finite; its weights are broken; fetch them again")
        return values

    def _ask(self, head: Mapping[str, Any], pixels: bytes) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(head).encode() + b"\n" + pixels)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:  # it has died already
            answer = b""
        if not answer:
            raise RunFailed(f"{DRIFT}: {how_ended(process.wait(), self._log)}")
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        lend(Path(self._home.name), self._weights / _ALEXNET)
        command: list[str | Path] = [self._environment.python, "-I", NETWORKS]  # -I: nothing of our own environment
        with self._log.open("w", encoding="utf-8") as said:
            self._process = subprocess.Popen(
                command, env=open_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
        self._ask(
            {
                "weights": os.fspath(self._weights.absolute()),
                "home": self._home.name,
                "device": self._device,
                "threads": self._threads,
            },
            b"",
        )
        return self._process
