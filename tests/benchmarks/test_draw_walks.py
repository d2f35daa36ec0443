"""Pictures of the grid show the passes, each cell and each context once."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks.draw_walks import BLOCKS, CAPTIONS, FOLDER, STEPS, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str, kind: str) -> list[tuple[int, int, int]]:
    """(block, step, call) of every mark of a kind, counted from 1, in the order of calls."""
    root = ET.fromstring(draw(*CAPTIONS[name]))
    titles = [group.find(f"{SVG}title").text for group in root.iter(f"{SVG}g") if group.get("class") == kind]
    marks = [tuple(map(int, re.findall(r"\d+", title))) for title in titles]
    return sorted(marks, key=lambda mark: mark[2])


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_cell_is_drawn_once(name: str):
    cells = [(block, step) for block, step, _ in drawn(name, "cell")]
    assert len(cells) == len(set(cells))
    assert set(cells) == {(block, step) for block in range(1, BLOCKS + 1) for step in range(1, STEPS + 1)}


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_context_is_drawn_once_and_after_its_block(name: str):
    contexts = {(block, step): call for block, step, call in drawn(name, "context")}
    steps = [STEPS] if name == "block_first" else range(1, STEPS + 1)
    assert len(contexts) == len(drawn(name, "context"))
    assert set(contexts) == {(block, step) for block in range(1, BLOCKS) for step in steps}
    denoised = {(block, step): call for block, step, call in drawn(name, "cell")}
    assert all(call > denoised[cell] for cell, call in contexts.items())
    # the next block reads it in the same call or a later one
    assert all(call <= denoised[block + 1, step] for (block, step), call in contexts.items())


def test_step_first_finishes_each_step_before_the_next():
    assert [step for _, step, _ in drawn("step_first", "cell")] == sorted(list(range(1, STEPS + 1)) * BLOCKS)


def test_both_processes_of_a_pipeline_work_at_the_same_time():
    calls = [(step > STEPS // 2, call) for _, step, call in drawn("pipelined", "cell")]
    assert {call for second, call in calls if second} & {call for second, call in calls if not second}


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_committed_picture_is_up_to_date(name: str):
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == draw(*CAPTIONS[name])
