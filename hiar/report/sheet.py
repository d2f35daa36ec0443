"""Several models' videos of one prompt as a single picture: one row per model, one column per moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL, GAP = 96, 6  # pixels
LABEL, HEAD, FOOT = 190, 40, 26
PAPER, INK, SOFT, EMPTY = (255, 255, 255), (23, 24, 26), (92, 96, 102), (243, 243, 241)


def contact_sheet(heading: str, rows: Sequence[tuple[str, Tensor]], columns: int, frames_per_second: int) -> np.ndarray:
    """A picture, uint8 (H, W, 3), of named videos, uint8 (F, H, W, 3), at ``columns`` moments of the longest one.

    Cells after the end of a video are empty, and the first of them says when it ended.
    """
    longest = max(len(video) for _, video in rows)
    moments = [round(i * (longest - 1) / max(1, columns - 1)) for i in range(columns)]
    width = LABEL + columns * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width + 2 * GAP, HEAD + len(rows) * (CELL + GAP) + FOOT), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    draw.text((GAP, HEAD / 2), heading, fill=INK, font=large, anchor="lm")
    for r, (name, video) in enumerate(rows):
        top = HEAD + r * (CELL + GAP)
        draw.text((GAP, top + CELL / 2), name, fill=INK, font=small, anchor="lm")
        for c, moment in enumerate(moments):
            left = GAP + LABEL + c * (CELL + GAP)
            if moment < len(video):
                cell = Image.fromarray(video[moment].numpy()).resize((CELL, CELL), Image.Resampling.BICUBIC)
                sheet.paste(cell, (left, top))
                continue
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=EMPTY)
            if moments[c - 1] < len(video):
                end = f"ends at\n{len(video) / frames_per_second:.3g} s"
                draw.text((left + CELL / 2, top + CELL / 2), end, fill=SOFT, font=small, anchor="mm", align="center")
    for c, moment in enumerate(moments):
        place = (GAP + LABEL + c * (CELL + GAP) + CELL / 2, sheet.height - FOOT / 2)
        draw.text(place, f"{moment / frames_per_second:.1f} s", fill=SOFT, font=small, anchor="mm")
    return np.asarray(sheet)
