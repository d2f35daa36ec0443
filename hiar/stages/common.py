"""What all stages share: the paths of artifacts, and the context manager that a stage runs in."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import content_hash, partial_of, read_manifest, unfinished, write_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.files import write_json, write_text
from hiar.io.hardware import hardware, peak_memory_mb
from hiar.io.process_group import ALONE, Ranks, joined
from hiar.stages.definition import check_fits, code_hash, settings_of, unchanged
from hiar.stages.restart import TRAINING, opened_state, restarted_from, take_up
from hiar.tracking.stage import Run, tracked
from hiar.worlds.interface import World, open_world


@dataclass(frozen=True)
class Paths:
    """The paths of one seed's artifacts in a workspace."""

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

    def vbench(self, dimension: str) -> Path:
        return self.root / "vbench" / dimension

    def samples(self, model: str, variant: str | None) -> Path:
        return self.root / "samples" / model / (variant or "")


@dataclass(frozen=True)
class Stage:
    """A running stage; ``folder`` becomes its artifact when the stage succeeds.

    With several processes (``ranks``), only the leader writes it.
    """

    name: str
    params: Params
    folder: Path
    run: Run
    accelerator: Accelerator
    parents: Mapping[str, str]  # content hashes
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    ranks: Ranks

    @property
    def training(self) -> Path:
        """Where a training run keeps its states until the artifact is complete."""
        return self.folder / TRAINING

    def finish(self, kind: str, **facts: Any) -> None:
        """Write the artifact's manifest; the last thing a stage does in its folder."""
        restarted = restarted_from(self.folder)
        facts |= {"restarted_from": restarted} if restarted else {}
        write_manifest(self.folder, kind, parents=self.parents, settings=self.settings, **self.facts, **facts)


@contextmanager
def stage(
    name: str,
    params: Params,
    workspace: Path,
    out: Path,
    *,
    seed: int,
    parents: Mapping[str, tuple[Path, str]],
    variant: str | None = None,
    definition: str | None = None,
    restart: Path | None = None,
    shared: bool = False,
) -> Iterator[Stage]:
    """Check the ``parents`` (folder and kind), set up CPU and device, track the run, and yield a folder to work in.

    An interrupted stage resumes only if all that decides its artifact is unchanged: the parameters and the code that
    dvc.yaml lists for it (as ``definition``, if not as ``name``), the seed and the parents' contents. Otherwise its
    work is set aside under another name; ``restart`` names such work, whose training is then resumed.
    shared: the stage may run as several processes, which all run the body; one of them leads.

    Raises UserError for parents that are missing, altered, or made with other parameters than ``params``.
    """
    threads = params.runtime.threads if variant is None else params.runtime.variant_threads
    settle_cpu(threads)
    began = time.monotonic()
    folders = {parent: folder for parent, (folder, _) in parents.items()}
    facts = {"stage": name, "seed": seed, "variant": variant}
    settings = settings_of(definition or name, params, variant)
    with ExitStack() as frame:
        ranks = frame.enter_context(joined(params.runtime) if shared else nullcontext(ALONE))
        run = Run()
        sampled = folders["checkpoint"] if name == "sample" else None
        with ranks.agreed():
            manifests = {parent: read_manifest(folder, kind) for parent, (folder, kind) in parents.items()}
            contents = {parent: content_hash(folder) for parent, folder in folders.items()}
            key = facts | {"settings": settings, "parents": contents}
            key |= {"code": code_hash(definition or name, params.world.kind)}
            for parent, manifest in manifests.items():
                check_fits(folders[parent], manifest, params, contents)
                settings = manifest.get("settings", {}) | settings  # what decides a parent decides this too
            accelerator = make_accelerator(params)
        with ranks.agreed():  # only after the checks: if one process refuses, nothing is begun
            if ranks.leads:
                state = frame.enter_context(opened_state(restart))
                whose = None if sampled else key
                run = frame.enter_context(tracked(definition or name, seed, variant, params, workspace, whose))
                folder = frame.enter_context(unfinished(out, key))
                frame.enter_context(unchanged(definition or name, params.world.kind, variant, workspace))
                if restart is not None and state is not None:
                    take_up(state, restart, folder)
        if ranks.leads:
            if sampled is None:
                run.tag("hardware", hardware(params.runtime.device, ranks.size))
            for parent, content in contents.items():
                run.tag(f"content of {parent}", content)
            resumed = any(folder.rglob("*.safetensors"))
        else:
            folder = partial_of(out)
        yield Stage(name, params, folder, run, accelerator, contents, settings, facts, ranks)
        if ranks.leads:
            place = out.relative_to(workspace / "artifacts")
            log = partial(write_log, workspace, str(place), params, began, stage=name, seed=seed, variant=variant)
            log(processes=ranks.size, resumed=resumed)
            run.tag("content", contents["checkpoint"] if sampled else content_hash(folder))
            run.tag("path", str((sampled or out).relative_to(workspace)))
            if sampled:
                run.tag("content of samples", content_hash(folder))


def make_accelerator(params: Params) -> Accelerator:
    """The Accelerator of a stage's process: device and precision. Raises UserError if the GPU asked for is missing."""
    device = params.runtime.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"params.yaml: runtime.device = {device!r}: torch sees no GPU here; use auto or cpu")
    return Accelerator(cpu=device == "cpu", mixed_precision=params.runtime.precision)


def sample_world(params: Params) -> World:
    """The world that gives the samples' prompts, which start at number ``FIRST_CLIP["sample"]``."""
    settings, sample = params.world, params.sample
    if settings.kind == "shapes":
        return open_world(settings.model_copy(update={"caption_dropout": sample.caption_dropout}))
    return open_world(settings.model_copy(update={"prompts": sample.prompts, "prompts_sha256": sample.prompts_sha256}))


def write_log(
    workspace: Path,
    place: str,
    params: Params,
    began: float,
    *,
    stage: str,
    seed: int | None = None,
    variant: str | None = None,
    processes: int = 1,
    resumed: bool = False,
) -> None:
    """Write logs/<place>.json: when a stage ran, how long (since ``began``, by ``time.monotonic``), and on what."""
    seconds = time.monotonic() - began
    write_json(
        workspace / "logs" / f"{place}.json",
        {
            "stage": stage,
            "seed": seed,
            "variant": variant,
            "started": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            **peak_memory_mb(params.runtime.device),
            "hardware": hardware(params.runtime.device, processes),
            "threads": torch.get_num_threads(),
            "resumed": resumed,
        },
    )


def write_metrics(workspace: Path, place: str, metrics: Mapping[str, float]) -> None:
    """Write metrics/<place>.json: the final metrics of a stage. Raises UserError for one that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{place}: {name} = {value}: should be finite; lower the learning rate and start over")
    write_json(
        workspace / "metrics" / f"{place}.json", {name: float(f"{value:.6g}") for name, value in metrics.items()}
    )


def write_curve(workspace: Path, place: str, curve: Sequence[Mapping[str, float]]) -> None:
    """Write curves/<place>.csv: one row per update; cells are empty where a row lacks a column."""
    columns = list(dict.fromkeys(name for row in curve for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in curve)
    write_text(workspace / "curves" / f"{place}.csv", text.getvalue())


def write_adopted(workspace: Path, place: str) -> None:
    """Write empty metrics and an empty curve, for a stage that had nothing to train."""
    write_metrics(workspace, place, {})
    write_text(workspace / "curves" / f"{place}.csv", "step,loss\n")


def tail_mean(curve: Sequence[Mapping[str, float]], column: str) -> float:
    """The mean of a column over the last tenth of a curve."""
    values = [row[column] for row in curve if column in row]
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail)
