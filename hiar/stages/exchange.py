"""``hiar import``, ``hiar export``, ``hiar models``: convert from and to others' checkpoints, and describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hiar.config import Conventions, Schedule, Video, WanWorld
from hiar.contexts import context_words
from hiar.errors import UserError, suggest
from hiar.io.artifacts import check_folder, content_hash, read_manifest, unfinished, write_manifest
from hiar.io.free import gigabytes
from hiar.models.card import CARD, Card, Walk, load_card, save_card
from hiar.parameters import explain
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Lora, World, describe_foreign, open_world

_RELEASED = {"block": 3, "window": 21, "sinks": 0, "shift": 5.0, "steps": 4, "renoise": "sde"}
# How the released students walk; a file of weights does not say.
PRESETS: dict[str, dict[str, Any]] = {
    "self-forcing": _RELEASED | {"order": "block_first", "context": "finished"},
    "causal-forcing": _RELEASED | {"order": "block_first", "context": "finished"},
    "hiar": _RELEASED | {"order": "step_first", "context": "output"},
    # The three-step one of its two students; --steps 4 is the other, with even steps at that shift.
    "causvid": _RELEASED
    | {"steps": 3, "shift": 8.0, "levels": (1.0, 0.757, 0.522), "order": "block_first", "context": "finished"},
    # Its first block stays in a window of twelve frames; its student is a base with an adapter (--lora).
    "longlive": _RELEASED | {"window": 12, "sinks": 1, "order": "block_first", "context": "finished"},
}
# How public implementations treat given blocks and sinks, except LongLive's endless videos, whose sinks turn.
THEIRS = Conventions(given="clean", sinks="stay", context_noise=0.0)


def import_checkpoint(
    source: Path,
    base: Path,
    out: Path,
    preset: str | None,
    weights: str | None,
    told: Mapping[str, Any],
    lora: Lora | None = None,
) -> None:
    """Write another project's student as a checkpoint folder that every command accepts.

    told: height, width, frames_per_second, precision, sinks_turn (with the window), block, window, sinks, shift, steps,
    levels (instead of these two), renoise, order, context; None takes the preset's value. lora: an adapter that is
    added to the weights.
    Raises UserError for a missing setting, and for a source that is incomplete or not of the base's size; nothing is
    written then.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--as = {preset}: is not a known kind of student; {suggest(preset, PRESETS)}")
    how = _with_levels(PRESETS.get(preset or "", {}), {name: told[name] for name in told if told[name] is not None})
    if unset := [f"--{name}" for name in _RELEASED | {"order": "", "context": ""} if name not in how]:
        raise UserError(
            f"{', '.join(unset)}: cannot be read from the weights; give them, or --as {' or '.join(PRESETS)}"
        )
    check_folder("--out", out, "checkpoint")
    name = source.name if lora is None else f"{source.name} + {lora[1]:g} {lora[0].name}"
    card = _card(preset, base, how)
    world = open_world(card.world)
    key: dict[str, Any] = {"source": str(source.resolve()), "weights": weights, "card": card.model_dump(mode="json")}
    key |= {} if lora is None else {"lora": [str(lora[0].resolve()), lora[1]]}
    with unfinished(out, key, replaces="checkpoint") as folder:
        world.bring_in(source, weights, folder / TRANSFORMER, lora)
        for part in (TEXT, CODEC):
            world.adopt(part, folder / part)
        save_card(folder, card)
        write_manifest(folder, "checkpoint", stage="distill", seed=0, variant=preset, source=name)


def export_checkpoint(checkpoint: Path, form: str, out: Path) -> None:
    """Write a checkpoint's transformer in ``form``, another project's format.

    Raises UserError if it is no checkpoint or has been altered, or for an unknown format; nothing is written then.
    """
    card = load_card(checkpoint)
    read_manifest(checkpoint, "checkpoint")
    open_world(card.world).send_out(checkpoint / TRANSFORMER, form, out)


def describe_model(path: Path, base: Path | None, verify: bool) -> list[tuple[str, str]]:
    """A description of a checkpoint, ours or another project's, as names and values; ``base``: see `hiar import`.

    verify: read every file of the base that it refers to. Raises UserError if it is no checkpoint, or incomplete.
    """
    if not (path / CARD).exists():
        return describe_foreign(path, base)
    card = load_card(path)
    manifest, world = read_manifest(path, "checkpoint"), open_world(card.world)
    for part in (TRANSFORMER, TEXT, CODEC) if verify else ():
        world.verify(path / part)
    walk = (
        f"{card.walk.order}, {context_words(card.walk.context, card.walk.level)}"
        if card.walk
        else "any walk, it was trained for none"
    )
    if card.stage == "teacher":
        walk = f"{card.solver_steps} solver steps, guidance {card.guidance:g}; bidirectional"
    video, schedule = card.video, card.schedule
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    said = [
        ("checkpoint", f"{card.stage}{f' {card.variant}' if card.variant else ''}, seed {card.seed}"),
        ("world", world.name),
        ("walk", walk),
        (
            "video",
            f"blocks of {video.block}, window {video.window}, {video.sink_blocks} sinks; clips of {video.frames}",
        ),
        ("steps", f"{schedule.student_steps}, {_levels(schedule)}, {schedule.renoise}"),
        ("computes in", "bf16" if card.precision == "bf16" else "fp32"),
        *((name, _part(path / name, world)) for name in (TRANSFORMER, TEXT, CODEC)),
        ("size", gigabytes(size)),
        ("content", content_hash(path)),
    ]
    if source := manifest.get("source"):
        said.append(("imported from", str(source)))
    return [
        *said,
        ("to sample it", f'hiar sample --checkpoint {path} --prompt "..." --frames {video.frames} --out out'),
    ]


def _levels(schedule: Schedule) -> str:
    """The noise levels at which a student's steps begin, in words."""
    if schedule.student_levels is None:
        return f"shift {schedule.student_shift:g}"
    return f"at {', '.join(f'{level:g}' for level in schedule.student_levels)}"


def _with_levels(preset: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """A preset updated with what was told: levels replace steps and shift, and either of these two replaces levels."""
    if "levels" in told:
        if also := [f"--{name}" for name in ("steps", "shift") if name in told]:
            raise UserError(
                f"--levels: sets the number of steps and their noise levels; leave out {' and '.join(also)}"
            )
        own = {
            "steps": len(told["levels"]),
            "shift": preset.get("shift", 1.0),
        }  # fills the card's teacher_shift; a student has no use for it
    else:
        own = {"levels": None} if {"steps", "shift"} & told.keys() else {}
    return {"levels": None} | dict(preset) | own | dict(told)


def _part(folder: Path, world: World) -> str:
    """Where a part of a checkpoint is, with its size, or with its hash if it is the base's."""
    found = world.referred(folder)
    if found is None:
        return f"its own, {gigabytes(sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()))}"
    base, content = found
    return f"that of {base}, SHA-256 {content}"


def _card(preset: str | None, base: Path, how: Mapping[str, Any]) -> Card:
    """The card of an imported student. Raises UserError naming the option that does not fit."""
    try:
        world = WanWorld(
            kind="wan",
            base=base,
            height=how["height"],
            width=how["width"],
            frames_per_second=how["frames_per_second"],
            prompts=None,
            negative_prompt=None,
        )
        block, window = how["block"], how["window"]
        video = Video(frames=window, block=block, window=window, sink_blocks=how["sinks"])
        schedule = Schedule(
            teacher_shift=how["shift"],
            student_shift=how["shift"] if how["levels"] is None else None,
            student_steps=how["steps"],
            renoise=how["renoise"],
            student_levels=how["levels"],
        )
        return Card(
            stage="distill",
            variant=preset,
            seed=0,
            walk=Walk(order=how["order"], context=how["context"]),
            guidance=1.0,
            solver_steps=how["steps"],
            prediction="flow",
            coordinates=False,
            world=world,
            video=video,
            schedule=schedule,
            conventions=THEIRS.model_copy(update={"sinks": "turn"}) if how.get("sinks_turn") else THEIRS,
            precision=how["precision"],
        )
    except ValidationError as error:
        raise UserError(f"--{explain(error, Card)}") from None
