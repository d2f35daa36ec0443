"""VBench-Long's fast branch: the similarity of the first frames of a video's clips, combined with the clips' values.

Within single clips, slow drift costs nothing. So `evaluate_long.sh` (``--dev_flag``) adds the similarity of the clips'
first frames, by networks that look at content rather than at details, mapped to the scale of the clips' own branch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from hiar.errors import UserError
from hiar.vbench.dimensions import DINO

SUFFIX = "_across_clips"  # after a dimension's name: its branch
WITHIN, BOTH = "within clips", "within and across clips"  # what a result covers
SHARE = 0.5  # of the branch in a video's value since VBench-Long of 2024-06-07; before, .3 and .2
# Packages that its values depend on.
VERSIONS = {"torch", "timm", "transformers", "decord", "dreamsim", "peft", "accelerate", "open_clip_torch"}
_DREAMSIM = tuple(
    f"dreamsim/{name}"
    for name in (
        "dino_vitb16_pretrain.pth",
        "clip_vitb16_pretrain.pth.tar",
        "open_clip_vitb16_pretrain.pth.tar",
        "ensemble_lora/adapter_config.json",
        "ensemble_lora/adapter_model.safetensors",
    )
)


class Branch(NamedTuple):
    """What a dimension's fast branch needs beyond the slow one. table: the file that maps its values."""

    table: str
    networks: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """All its files, in the folder of weights."""
        return self.table, *self.networks


BRANCHES = {
    "subject_consistency": Branch(
        "vbench_long/subject_mapping_table.yaml",
        ("dinov2-base/config.json", "dinov2-base/model.safetensors"),
        ("transformers",),
    ),
    "background_consistency": Branch(
        "vbench_long/background_mapping_table.yaml", (*DINO, *_DREAMSIM), ("dreamsim", "peft")
    ),
}

Table = Mapping[float, float]


def read_table(path: Path) -> Table:
    """The table from values of the fast branch to the slow one's scale. Raises UserError for another file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        table = {float(value): float(becomes) for value, becomes in found.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is not VBench-Long's table ({reason}); get it with `hiar vbench fetch`") from None
    if {0.0, 1.0} - table.keys():
        raise UserError(f"{path}: does not map 0 and 1; get VBench-Long's with `hiar vbench fetch`")
    return table


def both_branches(within: float, across: float | None, table: Table) -> float:
    """A video's value. across: None for a video of one clip; then, as when it maps to 0, only ``within`` counts."""
    mapped = 0.0 if across is None else _mapped(across, table)
    return within if mapped == 0 else within * (1 - SHARE) + mapped * SHARE


def _mapped(value: float, table: Table) -> float:
    """Interpolate linearly in the table; a value outside it takes the nearest entry's."""
    known = sorted(table)
    place = bisect_left(known, value)
    if place in (0, len(known)):
        return table[known[min(place, len(known) - 1)]]
    low, high = known[place - 1], known[place]
    return table[low] + (table[high] - table[low]) * (value - low) / (high - low)
