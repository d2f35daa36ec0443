"""``hiar import-pairs`` and ``hiar export-pairs``: convert ODE pairs from and to other projects' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.artifacts import check_folder, unfinished, write_manifest
from hiar.io.files import write_text
from hiar.io.progress import Progress
from hiar.io.shards import read_shard, shard_path, write_shard
from hiar.io.text import one_line
from hiar.schedule import step_sigmas
from hiar.stages.pairs import CAPTIONS, CLIPS, STATES, load_pairs
from hiar.worlds.interface import foreign_pairs, write_foreign_pairs


def import_pairs(
    source: Path, out: Path, levels: float | tuple[float, ...], shard: int, *, clip_last: bool = False
) -> str:
    """Write the pairs in ``source`` as an artifact for ``pairs.source``; returns a description of them.

    levels: the noise levels of their states except the clean one, or the shift of even steps; unused for single states,
    which are clean videos. shard: pairs per file.
    clip_last: the last entry is no state of the trajectory, which ends before it, but the clip whose blocks were the
    context that it was solved with; it is stored as such.
    Raises UserError for pairs that are damaged or of several kinds, or another number of levels; nothing is written to
    ``out`` then.
    """
    check_folder("--out", out, "pairs")
    captions: list[str] = []
    held: list[Tensor] = []
    clips: list[Tensor] = []
    key: dict[str, Any] = {"imported from": str(source.resolve()), "levels": levels, "shard": shard}
    key |= {"clip last": True} if clip_last else {}
    with unfinished(out, key, "pairs") as folder:

        def write() -> None:
            first = len(captions) - len(held)
            rows = {STATES: torch.stack(held)} | ({CLIPS: torch.stack(clips)} if clips else {})
            write_shard(shard_path(folder, first // shard), rows, {"first": str(first)})
            held.clear()
            clips.clear()

        with Progress("import", None, unit="pairs") as progress:
            for pair in foreign_pairs(source):
                states = pair.states[:-1] if clip_last else pair.states
                if not captions:
                    sigmas = _sigmas(levels, len(states), source)
                held.append(states)
                clips += [pair.states[-1:]] if clip_last else []
                captions.append(one_line(pair.prompt))
                if len(held) == shard:
                    write()
                progress.advance()
        if held:
            write()
        write_text(folder / CAPTIONS, "".join(f"{caption}\n" for caption in captions))
        facts: dict[str, Any] = {"count": len(captions), "shard": shard, "sigmas": sigmas, "source": source.name}
        write_manifest(folder, "pairs", **facts | ({CLIPS: True} if clip_last else {}))
    size, dtype = "x".join(map(str, pair.states.shape[1:])), str(pair.states.dtype).removeprefix("torch.")
    said = ", ".join(f"{sigma:.4g}" for sigma in sigmas) + (", and a clip each" if clip_last else "")
    return f"{len(captions)} pairs of {size} (channels, frames, height, width) in {dtype}, at levels {said}"


def _sigmas(levels: float | tuple[float, ...], states: int, source: Path) -> list[float]:
    """The noise level of each state of a trajectory. Raises UserError if ``levels`` has another number of them."""
    if states == 0:
        raise UserError(f"--clip-last: {source} holds clips without trajectories; leave it out")
    if states == 1:
        return [0.0]
    if not isinstance(levels, tuple):
        return step_sigmas(states - 1, levels).tolist()
    if len(levels) != states - 1:
        given = ",".join(f"{level:g}" for level in levels)
        remedy = f"{source} has {states} states a trajectory; give {states - 1} levels, the clean end has none"
        raise UserError(f"--levels = {given}: {remedy}")
    return [*levels, 0.0]


def export_pairs(source: Path, form: str, out: Path) -> None:
    """Write an artifact of pairs in another project's format: ``form`` is hiar or self-forcing.

    Raises UserError if it is no such artifact or damaged, and as `write_foreign_pairs` does; nothing is written then.
    """
    pairs = load_pairs(source)
    shards = len(list(source.glob("*.safetensors")))
    write_foreign_pairs(pairs.captions, lambda: (_as_theirs(source, index) for index in range(shards)), form, out)


def _as_theirs(source: Path, index: int) -> Tensor:
    """The trajectories of a shard, each followed by its clip if there is one."""
    held = read_shard(shard_path(source, index))
    return torch.cat([held[STATES], held[CLIPS]], dim=1) if CLIPS in held else held[STATES]
