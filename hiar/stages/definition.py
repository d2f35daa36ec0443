"""What decides the artifact of a stage, as dvc.yaml lists it: its parameters and its code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import MANIFEST, Facts, facts
from hiar.parameters import load_params

PARAMS = "params.yaml"
DVC_YAML = Path(__file__).resolve().parents[2] / "dvc.yaml"  # of the code that runs
OURS = "hiar/"  # the package, beside it


def settings_of(stage: str, params: Params, variant: str | None) -> dict[str, Any]:
    """The values of the parameters that dvc.yaml lists for a stage, by name."""
    names = _stages().get(stage, {}).get("params", [])
    tree = params.model_dump(mode="json")
    return {name: _value(tree, name) for name in (_named(name, variant or "") for name in names)}


def _named(name: str, variant: str) -> str:
    """A parameter's name in dvc.yaml with its templates filled in, for a variant or for STUDENT/WALK."""
    student, _, walk = variant.partition("/")
    return name.replace("${item.variant.walk}", walk).replace("${item.variant}", student)


def code_hash(stage: str, world: str) -> str:
    """SHA-256 of the code that dvc.yaml lists for a stage in a world; of the whole package if it lists none."""
    deps = [name.replace("${world.kind}", world) for name in _stages().get(stage, {}).get("deps", [])]
    places = [DVC_YAML.parent / name for name in deps if name.startswith(OURS)] or [DVC_YAML.parent / OURS]
    files = {file for place in places for file in (place, *place.rglob("*.py")) if file.is_file()}
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sorted(files))).hexdigest()


@contextmanager
def unchanged(stage: str, world: str, variant: str | None, workspace: Path) -> Iterator[None]:
    """Raise UserError after the body if the stage's code, or its parameters in params.yaml, changed meanwhile.

    DVC reads both after the stage has ended, and would record the new ones for an artifact that the old ones made.
    """
    path = workspace / PARAMS

    def parameters() -> dict[str, Any]:
        return settings_of(stage, load_params(path), variant) if path.exists() else {}

    code, settings = code_hash(stage, world), parameters()
    yield
    remedy = f"changed while stage {stage} ran; restore it, and run again to resume from the saved state"
    for field, before, now in _differences("", settings, parameters()):
        raise UserError(f"{path}: {field.removeprefix('.')} = {now!r}: was {before!r}, and {remedy}")
    if code_hash(stage, world) != code:
        raise UserError(f"{DVC_YAML.parent / OURS}: the code has {remedy}")


def check_fits(folder: Path, manifest: Mapping[str, Any], params: Params, contents: Mapping[str, str]) -> None:
    """Raise UserError if a parent is not what DVC would make for ``params``, naming the first field that differs.

    contents: content hashes of the stage's parents by name; a parent made from another version of one is stale.
    """
    made = facts(folder, manifest, _Made)
    path, again = folder / MANIFEST, f"run stage {made.stage} again"
    tree = params.model_dump(mode="json")
    for name, made_with in made.settings.items():
        for field, value, wanted in _differences(name, made_with, _value(tree, name)):
            raise UserError(f"{path}: {field} = {value!r}: params.yaml says {wanted!r}; {again}, or set it back")
    for name, content in made.parents.items():
        if contents.get(name, content) != content:
            raise UserError(f"{path}: parents.{name} = {content[:12]}: the {name} has changed since; {again}")


class _Made(Facts):
    parents: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    stage: str = "(unknown)"


def _differences(name: str, made_with: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two values of a parameter differ, each with both values."""
    if isinstance(made_with, dict) and isinstance(wanted, dict):
        for key in sorted(made_with.keys() | wanted.keys()):
            yield from _differences(f"{name}.{key}", made_with.get(key), wanted.get(key))
    elif made_with != wanted:
        yield name, made_with, wanted


def _value(tree: Any, name: str) -> Any:
    """The value at a dotted name; None if there is no such parameter any more."""
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


@functools.cache
def _stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml; none where the package is installed without it."""
    if not DVC_YAML.exists():
        return {}
    return yaml.safe_load(DVC_YAML.read_text(encoding="utf-8"))["stages"]
