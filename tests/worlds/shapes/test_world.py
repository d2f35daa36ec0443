"""The built-in world beside its clips: outlines, weights in the asked type, and what only Wan has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shape_worlds import DEFAULT
from students import smoke_params

from hiar.errors import UserError
from hiar.models.denoiser import build_denoiser
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER
from hiar.worlds.shapes import open_world

WORLD = open_world(DEFAULT)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint's folder with a transformer."""
    model = smoke_params().model
    assert model is not None
    build_denoiser(model, 4, seed=0).transformer.save_pretrained(tmp_path / TRANSFORMER)
    return tmp_path


def test_no_checkpoint_of_another_project_is_taken_or_made(tmp_path: Path) -> None:
    (tmp_path / "student.pt").write_bytes(b"weights")
    line = r"student\.pt: no other project has checkpoints of the built-in world; import one of Wan$"
    for refused in (
        lambda: WORLD.check_foreign(tmp_path / "student.pt", None),
        lambda: WORLD.bring_in(tmp_path / "student.pt", None, tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=line):
            refused()
    with pytest.raises(UserError, match=r"^--to = wan: no other project reads checkpoints of the built-in world; "):
        WORLD.send_out(tmp_path, "wan", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["student.pt"]


def test_parts_are_outlined_in_the_shapes_in_which_they_are_made(saved: Path) -> None:
    params = smoke_params()
    assert params.codec is not None and params.model is not None
    made = {
        CODEC: WORLD.new_codec(params.codec, seed=0, frames=1),
        TEXT: WORLD.new_text(params.model, seed=0),
        TRANSFORMER: WORLD.load_transformer(saved / TRANSFORMER),
    }
    for part, network in made.items():
        outlined = WORLD.outline(part, params, saved if part == TRANSFORMER else None)
        shapes = [{name: one.shape for name, one in each.state_dict().items()} for each in (network, outlined)]
        assert shapes[0] == shapes[1]
    assert WORLD.words(params) == made[TEXT].encode(["a red disc moves"]).shape[1]
    assert WORLD.kept(1000) == (0, 0)  # its embeddings are not cached
    with pytest.raises(UserError, match=r"nowhere/transformer/config\.json: no such file; name a checkpoint folder"):
        WORLD.outline(TRANSFORMER, params, saved / "nowhere")


def test_weights_are_read_in_the_asked_type(saved: Path) -> None:
    def types(dtype: torch.dtype | None) -> set[torch.dtype]:
        return {one.dtype for one in WORLD.load_transformer(saved / TRANSFORMER, dtype).parameters()}

    assert types(torch.float32) == types(None) == {torch.float32}
    assert types(torch.bfloat16) == {torch.bfloat16, torch.float32}  # what Wan keeps in full precision
