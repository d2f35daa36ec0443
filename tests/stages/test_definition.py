"""What decides an artifact: whose code, and every field of the parameters it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hiar.errors import UserError
from hiar.parameters import load_params
from hiar.stages.definition import check_fits, code_hash, settings_of

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.mark.parametrize("stage", ["codec", "teacher", "pairs", "init", "distill", "sample", "score"])
def test_each_world_has_code_of_its_own(stage: str) -> None:
    assert code_hash(stage, "shapes") != code_hash(stage, "wan")


def test_fields_that_came_or_went_since_are_differences(tmp_path: Path) -> None:
    settings = settings_of("teacher", PARAMS, None)
    manifest: dict[str, Any] = {"kind": "checkpoint", "stage": "teacher", "settings": settings}
    check_fits(tmp_path, manifest, PARAMS, {})
    name, section = next((name, value) for name, value in settings.items() if isinstance(value, dict))
    field = next(iter(section))
    for changed, line in (
        ({key: one for key, one in section.items() if key != field}, rf"{name}\.{field} = None: params.yaml says"),
        (section | {"gone": 3}, rf"{name}\.gone = 3: params.yaml says None; run stage teacher again"),
    ):
        with pytest.raises(UserError, match=line):
            check_fits(tmp_path, manifest | {"settings": settings | {name: changed}}, PARAMS, {})
