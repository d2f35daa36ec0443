"""VBench's prompt suite, read from the installed package: which prompts a dimension needs, and how videos are named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hiar.errors import UserError
from hiar.vbench.dimensions import samples_of

MOST_BYTES = 255  # of a file name
_NAME = re.compile(r"(?P<prompt>.*)-(?P<sample>[0-9]{1,3})", re.DOTALL)
_ROOM = len("-123.mp4")


class Entry(NamedTuple):
    """An entry of the suite. A prompt may have several, for different dimensions; its videos serve them all."""

    prompt: str
    dimensions: tuple[str, ...]
    auxiliary: dict[str, Any]  # what a video should show, for dimensions that compare with it


def read_suite(path: Path) -> list[Entry]:
    """The suite, in its order. Raises UserError when the file cannot be read as one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Entry(one["prompt_en"], tuple(one["dimension"]), one.get("auxiliary_info", {})) for one in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not VBench's prompt suite ({error}); rebuild its environment: rm -r "
            "the environment, then `make vbench`"
        ) from None


def wanted(suite: Iterable[Entry], dimensions: Collection[str]) -> dict[str, int]:
    """Number of videos that each prompt needs for these dimensions, in the suite's order, each prompt once."""
    counts: dict[str, int] = {}
    for entry in suite:
        if shared := set(entry.dimensions) & set(dimensions):
            counts[entry.prompt] = max(counts.get(entry.prompt, 0), samples_of(shared))
    return counts


def prompt_lines(counts: dict[str, int]) -> Iterator[str]:
    """One line per video to generate: each prompt as often as it needs videos."""
    for prompt, count in counts.items():
        yield from [prompt] * count


def file_stem(prompt: str, limit: int = MOST_BYTES - _ROOM) -> str:
    """A prompt as the stem of a file name; one of over ``limit`` bytes is cut and ends with its hash instead."""
    stem = prompt.replace("/", " ").replace("\0", " ")
    encoded = stem.encode()
    if len(encoded) <= limit:
        return stem
    mark = "~" + hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return encoded[: limit - len(mark)].decode(errors="ignore") + mark


def file_name(prompt: str, sample: int) -> str:
    """VBench's name of a video: the prompt as a stem and the number of the sample, counted from 0."""
    return f"{file_stem(prompt)}-{sample}.mp4"


def parse_name(stem: str, prompts: dict[str, str]) -> tuple[str, int] | None:
    """Prompt and sample of a video named as by VBench; None where the name matches no prompt.

    prompts: by their stems (`file_stem`).
    """
    found = _NAME.fullmatch(stem)
    if not found or found["prompt"] not in prompts:
        return None
    return prompts[found["prompt"]], int(found["sample"])
