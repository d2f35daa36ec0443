"""What defines an artifact: the code, and every field of the parameters it was made with."""

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


def test_added_and_removed_fields_are_differences(tmp_path: Path) -> None:
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


def test_samples_of_a_walked_student_depend_on_the_variant_it_walks_as() -> None:
    settings = settings_of("sample-walked", PARAMS, "hiar/self-forcing")
    assert settings["variants.self-forcing"] == PARAMS.variants["self-forcing"].model_dump(mode="json")
    assert None not in settings.values()


def test_an_artifact_with_a_changed_parent_is_stale_if_that_parent_is_checked(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {"kind": "checkpoint", "stage": "init", "parents": {"teacher": "ab", "pairs": "cd"}}
    check_fits(tmp_path, manifest, PARAMS, {"teacher": "ab"})
    with pytest.raises(UserError, match=r"parents\.pairs = cd: the pairs has changed since; run stage init again"):
        check_fits(tmp_path, manifest, PARAMS, {"teacher": "ab", "pairs": "ce"})
