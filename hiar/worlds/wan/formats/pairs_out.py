"""Export of our ODE pairs: HiAR's folder of ``{prompt: trajectory}`` files, and Self-Forcing's LMDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hiar.errors import UserError, suggest
from hiar.io.artifacts import unfinished
from hiar.io.files import atomic_file, remove
from hiar.io.free import require_room
from hiar.io.progress import Progress
from hiar.worlds.wan.formats.pairs import DATA, library

FORMS = ("hiar", "self-forcing")
_ROW = 1 << 14  # an upper bound for the bytes of an LMDB's row beside its latents: its prompt, and rounding to pages


def write_pairs(captions: Sequence[str], shards: Callable[[], Iterator[Tensor]], form: str, out: Path) -> None:
    """Write pairs as a new folder ``out``, which appears when it is complete; one shard is in memory at a time.

    shards: yields the trajectories of ``captions`` in their order, each (n, S + 1, C, F, h, w), from noise to clean.
    form: ``hiar``, one file per pair in our type; ``self-forcing``, an LMDB in float16, the only type it has.
    Raises UserError when ``form`` is unknown, ``out`` exists, the disk is too full, or float16 cannot hold a state.
    """
    if form not in FORMS:
        raise UserError(f"--to = {form}: is not an export format; {suggest(form, FORMS)}")
    if out.exists():
        raise UserError(f"--out = {out}: exists already; remove it or choose another name")
    first = next(shards())
    size = first.element_size() if form == "hiar" else 2
    nbytes = len(captions) * (first[0].numel() * size + _ROW)
    require_room(out, nbytes)
    with unfinished(out, {"exported pairs": form}) as folder:
        for path in folder.glob("[!.]*"):  # left by an interrupted export
            remove(path)
        with Progress("export", len(captions), unit="pairs") as progress:
            pairs = _each(shards(), progress)
            if form == "hiar":
                _write_files(captions, pairs, folder)
            else:
                _write_lmdb(captions, pairs, folder, nbytes)


def _each(shards: Iterator[Tensor], progress: Progress) -> Iterator[Tensor]:
    """The trajectories one by one, in the others' order of axes: (S + 1, F, C, h, w)."""
    for shard in shards:
        for states in shard:
            yield states.transpose(1, 2).contiguous()
            progress.advance()


def _write_files(captions: Sequence[str], pairs: Iterator[Tensor], folder: Path) -> None:
    for number, (caption, states) in enumerate(zip(captions, pairs, strict=True)):
        with atomic_file(folder / f"{number:05d}.pt") as temporary:
            torch.save({caption: states[None]}, temporary)


def _write_lmdb(captions: Sequence[str], pairs: Iterator[Tensor], folder: Path, nbytes: int) -> None:
    lmdb = library()
    try:
        with lmdb.open(str(folder), map_size=2 * nbytes, lock=False) as environment:
            for number, (caption, states) in enumerate(zip(captions, pairs, strict=True)):
                latents = states.half()
                if not latents.isfinite().all():
                    where = f"pair {number} ({caption!r:.60})"
                    raise UserError(f"{where}: is out of the range of float16, in which an LMDB stores; use --to hiar")
                with environment.begin(write=True) as rows:
                    if number == 0:
                        shape = (len(captions), *latents.shape)
                        rows.put(b"latents_shape", " ".join(map(str, shape)).encode())
                        rows.put(b"prompts_shape", str(len(captions)).encode())
                    rows.put(f"latents_{number}_data".encode(), latents.numpy().tobytes())
                    rows.put(f"prompts_{number}_data".encode(), caption.encode())
    except lmdb.Error as error:
        raise UserError(f"{folder / DATA}: cannot be written ({error}); choose another place") from None
