"""Our side of the worker: one process per dimension, its answers one by one, and the error when it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hiar.errors import RunFailed, UserError
from hiar.io.files import writing
from hiar.vbench.environment import Environment
from hiar.vbench.suite import file_stem

WORKER = Path(__file__).with_name("worker.py")
LOOK = "import torch; print(torch.cuda.is_available())"
_SEEN = "CUDA_VISIBLE_DEVICES"
_DINO = "dino_model/dino_vitbase16_pretrain.pth"  # loaded from torch.hub's folder, whatever VBench passes

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)


class Item(NamedTuple):
    """A video or clip to score. auxiliary: the suite's ``auxiliary_info`` on its prompt."""

    path: Path
    prompt: str
    auxiliary: Mapping[str, Any]


Answer = tuple[int | None, dict[str, Any] | None]  # an item's number and record; (None, None): one more step


def ask(
    environment: Environment,
    weights: Path,
    dimension: str,
    items: Sequence[Item],
    device: str,
    log: Path,
    begun: Callable[[subprocess.Popen[str]], None],
) -> Iterator[Answer]:
    """Score items in a process of VBench's environment and yield each one's record as it comes.

    The process prints to ``log``; ``begun`` is called with it. Raises RunFailed when it ends before its last answer;
    it does not outlive us.
    """
    with TemporaryDirectory(prefix="hiar-vbench-") as home:
        places = _stage(Path(home), items)
        device, variables = alone_on(device)
        lend(Path(home), weights / _DINO)
        entries = [
            {"prompt_en": item.prompt, "dimension": [dimension], "video_list": [place]}
            | ({"auxiliary_info": dict(item.auxiliary)} if item.auxiliary else {})
            for place, item in zip(places, items, strict=True)
        ]
        request = {
            "dimension": dimension,
            "device": device,
            "weights": os.fspath(weights.absolute()),
            "home": home,
            "entries": entries,
        }
        numbers = {place: number for number, place in enumerate(places)}
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            said = log.open("w", encoding="utf-8")
        command = [environment.python, "-I", WORKER]  # -I: nothing of our own environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "encoding": "utf-8"}
        with said, subprocess.Popen(command, env=variables, **pipes) as worker:  # type: ignore[call-overload]
            begun(worker)
            try:
                with suppress(BrokenPipeError):  # it has died already, which is reported below
                    worker.stdin.write(json.dumps(request) + "\n")
                    worker.stdin.flush()
                if (yield from _answers(worker.stdout, numbers)):
                    return
                raise RunFailed(f"{dimension}: {how_ended(worker.wait(), log)}; see its output in {log}")
            finally:
                worker.kill()


def _answers(lines: Iterable[str], numbers: Mapping[str, int]) -> Generator[Answer, None, bool]:
    """Yield the worker's answers; return whether it reached its end."""
    for line in lines:
        message = json.loads(line)
        if message["event"] == "end":
            return True
        if message["event"] == "video":
            yield numbers[message["path"]], message["fields"]
        else:
            yield None, None
    return False


@cache  # its torch takes seconds to import
def device_of(environment: Environment) -> str:
    """The device of networks in the environment: cuda where its own torch sees a GPU, whatever ours sees, else cpu.

    Its torch is another build: it may be for CPUs only, or for another driver.
    """
    command: list[str | Path] = [environment.python, "-I", "-c", LOOK]
    said = subprocess.run(command, env=open_environ(), capture_output=True, encoding="utf-8", check=False).stdout
    return "cuda" if said.strip() == "True" else "cpu"


def alone_on(device: str) -> tuple[str, dict[str, str]]:
    """A device as a process calls it that sees no other GPU, and that process's environment variables.

    Given a GPU, parts of VBench (GRiT, for one) take the first that they see. Raises UserError for one that
    CUDA_VISIBLE_DEVICES leaves out.
    """
    kind, _, number = device.partition(":")
    if not number:
        return device, open_environ()
    seen = os.environ.get(_SEEN)
    if seen is None:
        return kind, open_environ() | {_SEEN: number}
    gpus = seen.split(",") if seen else []
    if int(number) >= len(gpus):
        raise UserError(f"--device = {device}: {_SEEN} = {seen} has {len(gpus)} GPUs, counted from 0; give one of them")
    return kind, open_environ() | {_SEEN: gpus[int(number)]}


def open_environ() -> dict[str, str]:
    """Our environment variables without secrets, for processes that run others' code and pickles."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}


def how_ended(code: int, log: Path) -> str:
    """How a process ended unexpectedly, in words."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" * (name == "SIGKILL")
        return f"its process was killed by {name}{hint}"
    printed = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"its process failed ({printed[-1].strip()[:300] if printed else f'exit code {code}'})"


def _stage(home: Path, items: Sequence[Item]) -> list[str]:
    """Links to the videos under names that VBench understands.

    human_action reads the action from a file's name. No name is too long, or has a %, by which OpenCV would take it
    for a pattern of pictures.
    """
    places = []
    for number, item in enumerate(items):
        place = home / f"{number:06d}" / f"{file_stem(item.prompt, 200)}-0.mp4".replace("%", " ")
        place.parent.mkdir()
        place.symlink_to(item.path.absolute())
        places.append(os.fspath(place))
    return places


def lend(home: Path, file: Path) -> None:
    """Let torch.hub find a file where it would have downloaded it, with ``home`` as its TORCH_HOME."""
    place = home / "hub" / "checkpoints" / file.name
    place.parent.mkdir(parents=True)
    place.symlink_to(file.absolute())
