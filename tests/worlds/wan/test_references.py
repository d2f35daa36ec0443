"""A part by reference is the part that was referred to, whatever folder it is looked for from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Part
from hiar.worlds.wan.references import REFERENCE, locate, refer

PLACES: list[tuple[Part, str]] = [
    (TRANSFORMER, "transformer/config.json"),
    (TEXT, "text_encoder/config.json"),
    (TEXT, "tokenizer/tokenizer.json"),
    (CODEC, "vae/config.json"),
]


@pytest.mark.parametrize(("part", "place"), PLACES)
def test_a_file_that_is_another_now_is_noticed(base: Path, tmp_path: Path, part: Part, place: str) -> None:
    shutil.copytree(base, tmp_path / "base")
    refer(tmp_path / "part", tmp_path / "base", part)
    for _, other in PLACES:
        if not other.startswith(place.split("/")[0]) and (part, other) not in PLACES:
            (tmp_path / "base" / other).write_text("{}")
    assert locate(tmp_path / "part") == tmp_path / "base"
    with (tmp_path / "base" / place).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=rf"its {part} is another now; bring the one back"):
        locate(tmp_path / "part")


def test_a_base_is_found_from_everywhere_and_a_note_that_is_none_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(base.parent)
    refer(tmp_path / "part", Path(base.name), CODEC)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert locate(tmp_path / "part") == base
    assert locate(tmp_path / "elsewhere") is None  # a part that lies there itself
    note = tmp_path / "part" / REFERENCE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"weights": "generator"}))
    with pytest.raises(UserError, match=r"reference\.json: weights = 'generator': unknown parameter; .*anew"):
        locate(tmp_path / "part")
    with pytest.raises(UserError, match=r"vae: no such folder; name a base model of Wan2\.1"):
        refer(tmp_path / "part", tmp_path, CODEC)
