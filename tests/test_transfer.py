"""Downloads from a GPU are requested ahead and arrive in order; on a CPU nothing is requested ahead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from students import save_student

from hiar.stages import sample, stream, videos
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.transfer import arrivals, download, lead


@pytest.mark.parametrize(
    ("ahead", "order"),
    [
        (0, ["ask 0", "have 0", "ask 1", "have 1", "ask 2", "have 2"]),
        (1, ["ask 0", "ask 1", "have 0", "ask 2", "have 1", "have 2"]),
        (5, ["ask 0", "ask 1", "ask 2", "have 0", "have 1", "have 2"]),
    ],
)
def test_this_many_transfers_are_requested_ahead(ahead: int, order: list[str]) -> None:
    seen: list[str] = []

    def request(number: int) -> Callable[[], int]:
        seen.append(f"ask {number}")
        return lambda: seen.append(f"have {number}") or number

    assert list(arrivals(map(request, range(3)), ahead)) == [0, 1, 2]
    assert seen == order


def test_on_a_cpu_a_download_is_the_tensor_itself() -> None:
    x = torch.ones(2)
    assert download(x)() is x
    assert (lead(torch.device("cpu")), lead(torch.device("cuda", 1))) == (0, 1)


def test_requesting_ahead_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student")
    made = []
    for ahead in (0, 1):
        for module in (sample, stream, videos):
            monkeypatch.setattr(module, "lead", lambda device, ahead=ahead: ahead)
        request = Request(tmp_path / "student", ["a red disc moves left"], 9)
        sample_prompts(request, out := tmp_path / f"out-{ahead}", save_latents=True)
        stream.stream(request, [], streamed := tmp_path / f"{ahead}.mp4")
        made.append([path.read_bytes() for path in (out / "0000.mp4", out / "latents.safetensors", streamed)])
    assert made[0] == made[1]
