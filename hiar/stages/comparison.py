"""Which samples an experiment compares, and how their folders are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hiar.config import Context, Order, Params
from hiar.errors import UserError
from hiar.io.names import in_order, mp4_files
from hiar.io.reading import Head, read_head, read_parts
from hiar.io.text import one_line, split_lines
from hiar.stages.common import Paths

SAMPLES = "samples"  # kind of their manifests
CAPTIONS = "captions.txt"
TEACHER = "teacher"
LEAST_LEVELS = 3  # of a line


@dataclass(frozen=True)
class Contender:
    """One model of the comparison with one seed; the teacher walks no grid. variant: STUDENT/WALK for stage walked."""

    stage: Literal["teacher", "init", "distill", "walked"]
    variant: str
    order: Order | None
    context: Context | None
    seed: int

    def samples(self, workspace: Path) -> Path:
        """The folder of its samples."""
        return Paths(workspace, self.seed).samples(self.stage, None if self.stage == TEACHER else self.variant)


def contenders(params: Params) -> Iterator[Contender]:
    """Everything that ``params.compare`` and ``params.seeds`` name: seed by seed, the teacher first."""
    for seed in params.seeds:
        yield Contender("teacher", TEACHER, None, None, seed)
        for name in params.compare.init:
            walk = params.variant(name)
            yield Contender("init", name, walk.order, walk.context, seed)
        for name in params.compare.distill:
            walk = params.variant(name)
            yield Contender("distill", name, walk.order, walk.context, seed)
        for one in params.compare.walked:
            walk = params.variant(one.walk)
            yield Contender("walked", f"{one.student}/{one.walk}", walk.order, walk.context, seed)


def levels_compared(params: Params) -> dict[str, dict[float, str]]:
    """By line, contenders that differ only in the level of output context (trained or walked at it), by that level.

    Lines with fewer than three levels are left out.
    """
    lines: dict[str, dict[float, str]] = {}
    trained: dict[str, str] = {}  # the line of each kind of training
    for name in params.compare.distill:
        variant = params.variant(name)
        kind = f"{variant.order}, {variant.forward_kl}"
        if isinstance(variant.level, float):
            lines.setdefault(trained.setdefault(kind, f"variants like {name}, trained at c"), {})[variant.level] = (
                f"distill/{name}"
            )
            lines.setdefault(f"{name}, walked at c", {})[variant.level] = f"distill/{name}"
    for one in params.compare.walked:
        level, line = params.variant(one.walk).level, f"{one.student}, walked at c"
        if isinstance(level, float) and line in lines:
            lines[line].setdefault(level, f"walked/{one.student}/{one.walk}")
    return {line: levels for line, levels in lines.items() if len(levels) >= LEAST_LEVELS}


def nested(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows, one per contender with its ``metrics``, as stage -> variant -> seed -> metric, for `dvc metrics`."""
    tree: dict[str, Any] = {}
    for row in rows:
        tree.setdefault(row["stage"], {}).setdefault(row["variant"], {})[f"seed-{row['seed']}"] = row["metrics"]
    return tree


def read_summary(params: Params, workspace: Path) -> list[dict[str, Any]]:
    """One row per contender of ``params``: the fields of `Contender` and its ``metrics``, from metrics/summary.json.

    Raises UserError when the file cannot be read or lacks a contender.
    """
    path = workspace / "metrics" / "summary.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read; run `hiar stage score` first") from None
    rows = []
    for one in contenders(params):
        try:
            metrics = tree[one.stage][one.variant][f"seed-{one.seed}"]
        except (KeyError, TypeError):
            name = f"{one.stage} {one.variant}, seed {one.seed}"
            raise UserError(f"{path}: holds no row of {name}; run `hiar stage score` again") from None
        rows.append({**asdict(one), "metrics": metrics})
    return rows


def read_captions(folder: Path) -> list[str]:
    """The captions of a folder of videos, one per line; empty lines at the end do not count.

    The name captions.txt may be in any case. Raises UserError if there are none, one is empty, or they are not UTF-8.
    """
    path = folder / CAPTIONS
    try:
        found = sorted(one for one in folder.iterdir() if one.name.casefold() == CAPTIONS)
        if len(found) > 1:
            raise UserError(f"{found[0]}: there is {found[1].name} too; keep one of them")
        path = found[0] if found else path
        captions = [one_line(line) for line in split_lines(path.read_text(encoding="utf-8-sig").rstrip())]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; write one caption a line, one line a video, or name a --profile that needs none, "
            "such as drift-lite"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); write one caption a line, one line a video"
        ) from None
    if not captions or not all(captions):
        raise UserError(f"{path}: holds an empty line or nothing; write one caption a line, one line a video")
    return captions


def find_videos(folder: Path, count: int) -> list[Path]:
    """The ``count`` mp4 files of a folder in the order of their names, numbers by value.

    Raises UserError when there are not as many as captions, or their order is ambiguous.
    """
    paths = list_videos(folder)
    if len(paths) != count:
        raise UserError(f"{folder / CAPTIONS}: holds {count} captions for {len(paths)} videos; write one line a video")
    return paths


def list_videos(folder: Path) -> list[Path]:
    """The mp4 files of a folder in the order of their names, numbers by value.

    Raises UserError when their order is ambiguous.
    """
    return in_order(mp4_files(folder))


def check_videos(folder: Path, paths: Sequence[Path], size: tuple[int, int], least: int) -> int | None:
    """Raise UserError unless videos are alike, of the world's size, and have ``least`` frames, as far as headers say.

    size: the world's height and width.

    Returns how many frames each has, None where only decoding shows it. Nothing is decoded.
    """
    return check_heads(folder, {path: read_head(path) for path in paths}, size, least)


def check_heads(folder: Path, heads: Mapping[Path, Head], size: tuple[int, int], least: int) -> int | None:
    """As `check_videos`, for headers that have been read."""
    name, first = next(iter(heads.items()))
    if (first.height, first.width) != size:
        sizes = f"{first.width}x{first.height} pixels, the world {size[1]}x{size[0]}"
        raise UserError(f"{folder}: videos are {sizes}; use the params.yaml they were made with")
    if first.frames is not None and first.frames < least:
        raise UserError(too_short(folder, first.frames, least))
    for path, head in heads.items():
        if head[:2] != first[:2] or (first.frames and head.frames and head.frames != first.frames):
            raise UserError(f"{path}: is {_geometry(head)}, {name.name} {_geometry(first)}; use one size and length")
    return first.frames


def read_videos(paths: Sequence[Path]) -> Iterator[Iterator[Tensor]]:
    """The parts, uint8 (f, H, W, 3), of one video after another; read each to its end before the next.

    Raises UserError when one cannot be read or is longer or shorter than the first.
    """
    lengths: list[int] = []
    for path in paths:
        yield _counted(path, lengths)
        if lengths[-1] != lengths[0]:
            raise UserError(f"{path}: is {lengths[-1]} frames, {paths[0].name} {lengths[0]}; use one length")


def too_short(source: Path | str, frames: int, least: int) -> str:
    """The message for videos with fewer frames than scoring needs."""
    return f"{source}: videos have {frames} frames, scoring needs {least}; make longer ones"


def _counted(path: Path, lengths: list[int]) -> Iterator[Tensor]:
    lengths.append(0)
    for part in read_parts(path):
        lengths[-1] += len(part)
        yield part


def _geometry(head: Head) -> str:
    frames = "" if head.frames is None else f"{head.frames} frames of "
    return f"{frames}{head.width}x{head.height}"
