"""What every stage shares: where artifacts lie, and the frame a stage runs in."""

from __future__ import annotations

import csv
import io
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field

from hiar.config import Params, Section, World
from hiar.errors import UserError
from hiar.io.artifacts import (
    MANIFEST,
    Facts,
    content_hash,
    facts,
    read_manifest,
    source_hash,
    unfinished,
    write_json,
    write_manifest,
    write_text,
)
from hiar.io.hardware import hardware
from hiar.io.tracking import Run, tracked

# Every purpose draws its scenes from a range of clip numbers of its own: no caption or clip serves two of them.
FIRST_CLIP = {name: place * 2**40 for place, name in enumerate(["training", "held-out", "pairs", "distill", "sample"])}

# The parameters that say whether the artifact of a stage fits those of later stages: shapes of tensors depend on them.
SHAPE = {
    "teacher": ("world.size",),
    "pairs": ("world.size", "video.frames", "schedule.student_steps"),
    "init": ("world.size", "video.block", "schedule.student_steps"),
    "distill": ("world.size", "video.block", "schedule.student_steps"),
}


@dataclass(frozen=True)
class Paths:
    """Where the artifacts of one seed lie in a workspace."""

    workspace: Path
    seed: int

    @property
    def root(self) -> Path:
        return self.workspace / "artifacts" / f"seed-{self.seed}"

    @property
    def codec(self) -> Path:
        return self.root / "codec"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs"

    @property
    def init(self) -> Path:
        return self.root / "init"

    def distilled(self, variant: str) -> Path:
        return self.root / "distill" / variant

    def samples(self, model: str, variant: str | None) -> Path:
        return self.root / "samples" / model / (variant or "")


@dataclass(frozen=True)
class Stage:
    """A stage at work: ``folder`` becomes its artifact when the work ends well."""

    name: str
    params: Params
    folder: Path
    run: Run
    accelerator: Accelerator
    parents: Mapping[str, Path]
    facts: Mapping[str, Any]

    @property
    def training(self) -> Path:
        """Where the state of a training run is kept until the artifact is whole."""
        return self.folder / ".training"

    def finish(self, kind: str, **facts: Any) -> None:
        """Describe the artifact; the last thing a stage does in its folder."""
        shape = {field: _value(self.params, field) for field in SHAPE.get(self.name, ())}
        write_manifest(self.folder, kind, parents=self.parents, shape=shape, **self.facts, **facts)


@contextmanager
def stage(
    name: str,
    params: Params,
    workspace: Path,
    out: Path,
    *,
    seed: int,
    settings: Sequence[Section],
    parents: Mapping[str, tuple[Path, str]],
    variant: str | None = None,
) -> Iterator[Stage]:
    """Check the ``parents`` (folder and kind), set the machine up, track the run, and give a folder to work in.

    ``settings`` are the sections of params that decide the artifact: an interrupted stage goes on only while they, the
    seed, the device, the parents' contents and the code stay the same.
    """
    threads = params.runtime.threads if variant is None else params.runtime.variant_threads
    torch.set_num_threads(threads)
    began = time.monotonic()
    for folder, kind in parents.values():
        _check_shape(folder, read_manifest(folder, kind), params)
    folders = {parent: folder for parent, (folder, _) in parents.items()}
    contents = {parent: content_hash(folder) for parent, folder in folders.items()}
    facts = {"stage": name, "seed": seed, "variant": variant}
    key = facts | {
        "settings": [section.model_dump(mode="json") for section in settings],
        "parents": contents,
        "runtime": params.runtime.model_dump(mode="json", exclude={"checkpoint_minutes"}),
        "source": source_hash(),
    }
    accelerator = make_accelerator(params)
    with tracked(name, seed, variant, params, workspace) as run, unfinished(out, key) as folder:
        for parent, content in contents.items():
            run.tag(f"content of {parent}", content)
        resumed = any(folder.rglob("*.safetensors"))
        yield Stage(name, params, folder, run, accelerator, folders, facts)
        place = out.relative_to(workspace / "artifacts")
        write_log(workspace, str(place), params, began, stage=name, seed=seed, variant=variant, resumed=resumed)
    run.tag("content", content_hash(out))
    run.tag("path", str(out.relative_to(workspace)))


def make_accelerator(params: Params) -> Accelerator:
    """The device and precision of a stage, which is one process. Raises UserError for a GPU that is not there."""
    device = params.runtime.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"params.yaml: runtime.device = {device!r}: torch sees no GPU here; use auto or cpu")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=params.runtime.precision)
    if accelerator.num_processes > 1:
        raise UserError(
            f"WORLD_SIZE = {accelerator.num_processes}: a stage is one process for now; start it without a launcher"
        )
    return accelerator


def _check_shape(folder: Path, manifest: Mapping[str, Any], params: Params) -> None:
    """Raise UserError when an artifact was made for tensors of another shape than ``params`` ask for."""
    made = facts(folder, manifest, _Made)
    for field in {field for fields in SHAPE.values() for field in fields} & made.shape.keys():
        value, wanted = made.shape[field], _value(params, field)
        if value != wanted:
            raise UserError(
                f"{folder / MANIFEST}: {field} = {value}: params.yaml says {wanted}; "
                f"run stage {made.stage} again, or set it back"
            )


class _Made(Facts):
    shape: dict[str, Any] = Field(default_factory=dict)
    stage: str = "(unknown)"


def _value(params: Params, field: str) -> Any:
    """The parameter that a name such as ``world.size`` stands for."""
    return reduce(getattr, field.split("."), params)


def sample_world(params: Params) -> World:
    """The world whose clips from ``FIRST_CLIP["sample"]`` on the samples' prompts describe."""
    return params.world.model_copy(update={"caption_dropout": params.sample.caption_dropout})


def write_log(
    workspace: Path,
    place: str,
    params: Params,
    began: float,
    *,
    stage: str,
    seed: int | None = None,
    variant: str | None = None,
    resumed: bool = False,
) -> None:
    """logs/<place>.json: when a stage ran, how long (from ``began``, of ``time.monotonic``), and on what."""
    seconds = time.monotonic() - began
    write_json(
        workspace / "logs" / f"{place}.json",
        {
            "stage": stage,
            "seed": seed,
            "variant": variant,
            "started": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "hardware": hardware(params.runtime.device),
            "threads": torch.get_num_threads(),
            "resumed": resumed,
        },
    )


def write_metrics(workspace: Path, place: str, metrics: Mapping[str, float]) -> None:
    """metrics/<place>.json: the final figures of a stage. Raises UserError for one that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{place}: {name} = {value}: should be finite; lower the learning rate and start anew")
    write_json(
        workspace / "metrics" / f"{place}.json", {name: float(f"{value:.6g}") for name, value in metrics.items()}
    )


def write_curve(workspace: Path, place: str, curve: Sequence[Mapping[str, float]]) -> None:
    """curves/<place>.csv: a row an update; cells are empty where a row lacks a column."""
    columns = list(dict.fromkeys(name for row in curve for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in curve)
    write_text(workspace / "curves" / f"{place}.csv", text.getvalue())


def tail_mean(curve: Sequence[Mapping[str, float]], column: str) -> float:
    """The mean of a column over the last tenth of a curve."""
    values = [row[column] for row in curve if column in row]
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail)
