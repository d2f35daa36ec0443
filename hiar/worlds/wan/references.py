"""Parts of a base model in a checkpoint's folder, by reference, so that tens of gigabytes are never copied.

A part is a folder with reference.json: the base's path and one hash of the part's files. The hash is computed once, and
again when the size or time of a file changes (`hiar.io.fingerprints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hiar.errors import UserError
from hiar.io.files import write_json
from hiar.io.fingerprints import cache_folder, fingerprint
from hiar.parameters import explain
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Part

REFERENCE = "reference.json"
FOLDERS: dict[Part, tuple[str, ...]] = {  # of a base in diffusers' layout; the first one holds the network
    TRANSFORMER: ("transformer",),
    TEXT: ("text_encoder", "tokenizer"),
    CODEC: ("vae",),
}
ORIGINAL = "config.json"  # the transformer's; in the original's layout it lies in the base folder itself


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base: str
    part: Part
    content: str  # fingerprint of the part's files


def refer(folder: Path, base: Path, part: Part) -> None:
    """Make ``folder`` refer to a part of ``base``. Raises UserError when the part is missing."""
    content = fingerprint(folders_of(base, part), cache_folder())
    folder.mkdir(exist_ok=True)
    said = _Reference(base=str(base.resolve()), part=part, content=content)
    write_json(folder / REFERENCE, said.model_dump())


def locate(folder: Path, verify: bool = False) -> Path | None:
    """The base model that ``folder`` refers to, if any. Raises UserError as `referred` does."""
    found = referred(folder, verify)
    return None if found is None else found[0]


def referred(folder: Path, verify: bool = False) -> tuple[Path, str] | None:
    """The base model that ``folder`` refers to, and the fingerprint of the part; None where it holds the part itself.

    Raises UserError when the base is gone or its files have changed; with ``verify`` all are read for that, else those
    whose size or time has changed.
    """
    path = folder / REFERENCE
    try:
        said = _Reference.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix that") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, _Reference)}; make the checkpoint again") from None
    base = Path(said.base)
    if not base.is_dir():
        raise UserError(f"{path}: base = {said.base}: no such folder; restore the base model, or fix the path here")
    if fingerprint(folders_of(base, said.part), cache_folder(), verify) != said.content:
        raise UserError(
            f"{path}: base = {said.base}: its {said.part} has changed; restore the one that the checkpoint was "
            "made with, or make the checkpoint again"
        )
    return base, said.content


def folders_of(base: Path, part: Part) -> Sequence[Path]:
    """The folders of a part of a base. Raises UserError when one is missing, with a remedy that fits ``base``."""
    folders = [base / name for name in FOLDERS[part]]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; {_instead(base)}")
    return folders


def _instead(base: Path) -> str:
    """The remedy for a wrong base: users name the original's folder, a hub's cache, one part or only a model."""
    snapshots = [place for place in base.glob("snapshots/*") if (place / "transformer").is_dir()]
    if snapshots:  # named by hashes, so that only their times tell which is the newest
        newest = max(snapshots, key=lambda place: place.stat().st_mtime_ns)
        return f"{base} is a cache of models; name {newest}"
    if (base.parent / "transformer").is_dir():
        return f"{base} is a part of a base; name {base.parent}"
    if (base / ORIGINAL).exists():
        return f"{base} is in the original's layout; convert it once with `hiar base {base} --out NEW`"
    if not base.exists():
        return "name a base model of Wan2.1 in diffusers' layout, a folder on this machine: nothing is downloaded"
    return "name a base model of Wan2.1 in diffusers' layout"
