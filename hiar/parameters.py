"""Read params.yaml and the overrides merged over it; any mistake in them is reported in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hiar.config import Params, Section
from hiar.errors import BrokenRule, UserError, suggest
from hiar.plain_yaml import parse

SHOWN = 100  # characters of a value in an error line


def load_params(path: Path) -> Params:
    """Read and validate ``path``.

    Raises UserError naming the file, the field, its value and the remedy.
    """
    return parse_params(read_yaml(path), path)


def parse_params(tree: dict[str, Any], source: Path) -> Params:
    """Validate a parsed YAML tree; ``source`` is the file that errors name."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UserError when the file is missing, unreadable, not UTF-8, not YAML, or not a mapping.

    Also for values that YAML would silently misread: see `hiar.plain_yaml`.
    """
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder or name the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix that or name another file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except BrokenRule as error:
        raise UserError(f"{path}: {error.field}: {error.remedy}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: should hold a mapping of sections, not {type(tree).__name__}")
    return tree


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the leaves of ``override`` in place of its own; lists and sections of another kind are replaced."""
    if "kind" in override and override["kind"] != base.get("kind"):
        return override
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def explain(error: ValidationError, section: type[BaseModel] = Params) -> str:
    """The first problem found in validating ``section``, in one line."""
    problem = error.errors()[0]
    loc, holder = _placed(problem["loc"], section)
    field = ".".join(loc)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, BrokenRule):
        field = ".".join(part for part in (field, cause.field) if part)
        return f"{field} = {_short(cause.value)}: {cause.remedy}"
    if problem["type"] == "extra_forbidden":
        suggestion = suggest(field.rsplit(".", 1)[-1], list(getattr(holder, "model_fields", {})))
        return f"{field} = {_short(problem['input'])}: unknown parameter; {suggestion}"
    if problem["type"] == "union_tag_invalid":
        kinds = problem["ctx"]["expected_tags"].replace("'", "")
        return f"{field}.kind = {problem['ctx']['tag']!r}: there is no such kind; known: {kinds}"
    if problem["type"] == "union_tag_not_found":
        return f"{field}.kind: is missing; say which kind of {field} it is"
    if problem["type"] == "missing":
        return f"{field}: is missing; give it a value"
    if remedy := _misread(problem["type"], problem["input"]):
        return f"{field} = {_short(problem['input'])}: {remedy}"
    reason = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    return f"{field} = {_short(problem['input'])}: {reason}" if field else reason


def _misread(kind: str, value: object) -> str | None:
    """The remedy for a value that YAML reads as another type than was meant; None for other mistakes."""
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number) or (kind == "int_type" and not number.is_integer()):
            return None
        plain = f"{number:.0f}"
        if kind == "float_type":  # YAML requires a point before the e, and a sign after it
            mantissa, e, exponent = value.strip().lower().partition("e")
            point, sign = "" if "." in mantissa else ".0", "" if exponent[:1] in ("", "-", "+") else "+"
            plain = f"{mantissa}{point}{e}{sign}{exponent}"
        return f"YAML reads it as text; write {plain}"
    if kind == "literal_error" and isinstance(value, bool):
        return "YAML reads on, off, yes and no as true or false; write the word in quotes"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _placed(loc: tuple[int | str, ...], outermost: type[BaseModel]) -> tuple[list[str], Any]:
    """``loc`` as a path in params.yaml, without the kinds that pydantic adds, and the section that holds it."""
    section: Any = outermost
    holder, place, options = section, [], [section]
    for part in loc:
        if len(options) > 1 and (chosen := [one for one in options if part in get_args(_kind(one))]):
            options = chosen
            continue
        holder = section = options[0] if options else section
        place.append(str(part))
        annotation = section.model_fields[part].annotation if part in getattr(section, "model_fields", {}) else None
        within = [kind for one in (annotation, *get_args(annotation)) for kind in (one, *get_args(one))]
        sections = [kind for kind in within if isinstance(kind, type) and issubclass(kind, Section)]
        options = list(dict.fromkeys(sections)) or options
    return place, holder


def _kind(section: type[BaseModel]) -> Any:
    """The annotation of ``kind``, which discriminates the sections of a union; None without one."""
    return section.model_fields["kind"].annotation if "kind" in section.model_fields else None
