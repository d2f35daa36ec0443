"""Import and export of others' Wan checkpoints; tensors keep their type and, but for an added adapter, their bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

from hiar.errors import UserError, suggest
from hiar.io.artifacts import unfinished
from hiar.io.files import file_hash, writing
from hiar.io.free import gigabytes, require_room
from hiar.worlds.interface import TRANSFORMER, Lora
from hiar.worlds.wan.formats.configs import read_config
from hiar.worlds.wan.formats.lora import add_lora
from hiar.worlds.wan.formats.sources import Found, Weights, open_source, weights_in
from hiar.worlds.wan.formats.writing import write_diffusers, write_original, write_student
from hiar.worlds.wan.references import folders_of

FORMS = ("diffusers", "wan", "self-forcing")
LINKED = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "vae")  # of the base, in a pipeline's folder


def open_foreign(source: Path, weights: str | None, base: Path) -> Found:
    """A foreign transformer of the base's size. Raises UserError when the source holds none, or an incomplete one."""
    if weights is not None and weights not in get_args(Weights):
        raise UserError(f"--weights = {weights}: is not a set of weights; {suggest(weights, get_args(Weights))}")
    [folder] = folders_of(base, TRANSFORMER)
    wanted = read_config(folder / "config.json", {})
    return open_source(source, weights=weights, base=wanted)  # type: ignore[arg-type]


def bring_in(source: Path, weights: str | None, base: Path, folder: Path, lora: Lora | None = None) -> None:
    """Write a foreign transformer into a new ``folder`` in diffusers' layout, with an adapter, if any, merged."""
    found = open_foreign(source, weights, base)
    tensors = found.tensors if lora is None else add_lora(found.tensors, *lora)
    require_room(folder, sum(one.nbytes for one in tensors.values()))
    folder.mkdir(exist_ok=True)
    write_diffusers(tensors, found.config, folder)


def send_out(folder: Path, base: Path, form: str, out: Path) -> None:
    """Export the transformer in ``folder`` to ``out``, a new folder, or a new file for self-forcing.

    diffusers: a folder for its WanPipeline, whose other parts are links to the base's. wan: the original's folder.
    self-forcing: one file with ``generator`` and ``generator_ema``, both with our kept weights.
    """
    if form not in FORMS:
        raise UserError(f"--to = {form}: is not an export format; {suggest(form, FORMS)}")
    if out.exists():
        raise UserError(f"--out = {out}: exists already; remove it or choose another name")
    found = open_source(folder)
    if form == "self-forcing":
        with writing(out):
            write_student({"generator": found.tensors, "generator_ema": found.tensors}, out)
        return
    with unfinished(out, {"exported": str(folder.resolve()), "form": form}) as partial:
        if form == "wan":
            write_original(found.tensors, found.config, partial)
            return
        part = partial / TRANSFORMER
        shutil.rmtree(part, ignore_errors=True)  # left by an interrupted export
        part.mkdir()
        write_diffusers(found.tensors, found.config, part)
        for name in LINKED:
            link = partial / name
            link.unlink(missing_ok=True)
            if (base / name).exists():
                link.symlink_to((base / name).resolve())


def describe(source: Path, base: Path | None) -> list[tuple[str, str]]:
    """The properties of a foreign checkpoint, as names and values; ``base`` gives the head size if it does not."""
    sets = weights_in(source)
    each: list[Weights | None] = [*sets] or [None]
    # All must be complete; the last one is described, a student's EMA where there is one.
    for weights in each:
        found = open_source(source, weights=weights) if base is None else open_foreign(source, weights, base)
    chosen = f" --weights {sets[-1]}" if len(sets) > 1 else ""
    config, tensors = found.config, found.tensors.values()
    parameters = sum(one.nbytes // one.dtype.itemsize for one in tensors)
    types = sorted({str(one.dtype).removeprefix("torch.") for one in tensors})
    return [
        ("format", found.kind),
        (
            "transformer",
            f"{config['num_layers']} layers, {config['num_attention_heads']} heads of "
            f"{config['attention_head_dim']}, {parameters:,} parameters",
        ),
        ("stored", f"{gigabytes(sum(one.nbytes for one in tensors))} of {', '.join(types)}"),
        *([("weights", " and ".join(sets))] if chosen else []),
        *([("SHA-256", file_hash(source))] if source.is_file() else []),
        ("to sample it", f"hiar import SOURCE --base WAN --as self-forcing (or hiar){chosen} --out DIR"),
    ]
