"""`hiar live` of a tiny Wan: first blocks have fewer frames than others, and prompts are free text."""

from __future__ import annotations

import hashlib
import io
import os
from itertools import islice
from pathlib import Path

import av
import pytest
from live_server import Watcher, live
from safetensors.torch import load_file, save_file

from hiar.models.generator import load_generator
from hiar.stages.exchange import import_checkpoint
from hiar.stages.stream import clean_blocks, stream_rollout

PROMPT, OTHER = "A red fox trots along a snowy ridge at dawn.", "Der Fuchs legt sich in den Schnee."

pytestmark = pytest.mark.long


def test_a_restarted_video_continues_the_time_line(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    from hiar.worlds.wan.formats.names import to_original

    released = tmp_path / "student.safetensors"
    save_file({to_original(name): value for name, value in weights.items()}, released)
    request = {"height": 32, "width": 48, "frames_per_second": 16, "precision": "no", "window": 9}
    import_checkpoint(released, base, tmp_path / "student", "hiar", None, request)
    cache = {"HIAR_CACHE": os.environ["HIAR_CACHE"]}
    options = ("--prompt", PROMPT, "--lead", 2)
    with (
        live(tmp_path / "student", folder=tmp_path, options=options, settings=cache) as (_, address),
        Watcher(address) as viewer,
    ):
        viewer.watch(5)
        viewer.send(kind="prompt", text=OTHER)
        change = viewer.until("prompt")
        viewer.watch(change["block"] + 2)
        viewer.send(kind="restart", seed=3, order=None, context=None)
        begun = viewer.until("restart")
        viewer.watch(begun["block"] + 5)
    blocks = viewer.blocks[0]
    for event in (change, begun):
        assert blocks[event["block"]]["start"] == pytest.approx(event["seconds"])
    pictures = [12] * len(blocks)
    pictures[0] = pictures[begun["block"]] = 9
    assert [block["pictures"] for block in blocks] == pictures
    with av.open(io.BytesIO(viewer.videos[0])) as video:
        times = [frame.time for frame in video.decode(video=0)]
    assert times == pytest.approx([frame / 16 for frame in range(sum(pictures))])
    source = load_generator(tmp_path / "student")
    walk = source.card.walk
    assert walk is not None

    def hashes(prompt: str, changes: dict[int, str], seed: int, count: int) -> list[str]:
        made = clean_blocks(source, walk, stream_rollout(source, prompt, changes, walk, None, seed))
        return [hashlib.sha256(latent.float().numpy().tobytes()).hexdigest() for latent in islice(made, count)]

    expected = hashes(PROMPT, {change["block"]: OTHER}, 0, begun["block"])
    expected += hashes(OTHER, {}, 3, len(blocks) - begun["block"])
    assert [block["latent"] for block in blocks] == expected
