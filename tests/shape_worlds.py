"""Worlds of shapes that several test folders share."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from hypothesis import strategies as st

from hiar.config import Background, Color, Shape, ShapesWorld
from hiar.parameters import load_params

torch.set_num_threads(1)

DEFAULT = load_params(Path(__file__).parents[1] / "params.yaml").world
WHOLE_FAMILY = DEFAULT.model_copy(
    update={
        name: list(get_args(kind)) for name, kind in (("shapes", Shape), ("colors", Color), ("backgrounds", Background))
    }
)
PANNING = WHOLE_FAMILY.model_copy(update={"camera": 3.0})
LARGE = DEFAULT.model_copy(update={"size": 120, "radius": 30.0})


@st.composite
def worlds(draw: st.DrawFn) -> ShapesWorld:
    """Valid worlds of every kind, small enough to render quickly."""
    size = draw(st.sampled_from([32, 45, 64]))
    radius = draw(st.floats(5, size / 4))
    fast = draw(st.floats(0.5, size / 2 - radius))
    return ShapesWorld(
        kind="shapes",
        size=size,
        shapes=draw(_some(Shape)),
        colors=draw(_some(Color)),
        backgrounds=draw(_some(Background)),
        radius=radius,
        speed=(draw(st.floats(0.1, fast)), fast),
        camera=draw(st.sampled_from([0.0, 2.5])),
        caption_dropout=draw(st.floats(0, 1)),
        frames_per_second=12,
    )


def _some(kind: object) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(get_args(kind)), min_size=1, unique=True)
