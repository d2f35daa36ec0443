"""The process of one student: reads commands, one per line, from standard input, writes blocks to standard output.

It makes blocks as far as it may, then waits. It ends when its input closes, so it cannot outlive its server.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

import psutil
import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.cpu import settle_cpu
from hiar.io.video import fragments
from hiar.live.drift import open_figures
from hiar.live.walking import Made, Walking, begin
from hiar.live.wire import Message, write_message
from hiar.models.generator import Generator
from hiar.stages.computing import choose, computing
from hiar.stages.plan import load_sampler
from hiar.transfer import lead


def main() -> NoReturn:
    """Carry out commands until the input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--crf", type=int, required=True)
    parser.add_argument("--params", type=Path, required=True)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the server, which ends this process
    outlet = _own_output()
    commands: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    try:
        settle_cpu()
        source = load_sampler(asked.checkpoint, _device(asked.number))
        header, fragment_of = fragments(
            source.world.height, source.world.width, source.world.frames_per_second, asked.crf, apart=True
        )
        figures = open_figures(source, asked.params)
        ready = {"kind": "ready", "device": _name(source.codec.device), "pictures": source.block_pictures}
        ready["content"] = source.content
        write_message(outlet, ready, header)
        _make(source, commands, outlet, fragment_of, figures)
    except UserError as error:
        write_message(outlet, {"kind": "broken", "line": " ".join(str(error).split())})
        sys.exit(2)
    except BrokenPipeError:
        pass  # the server has gone
    sys.exit(0)


@dataclass
class _Making:
    """The state of a student: its video, its next block on the time line, and the block it must stop before."""

    source: Generator
    stack: ExitStack
    walking: Walking | None = None
    block: int = 0
    until: int = 0
    pending: deque[Message] = field(default_factory=deque)

    def take(self, command: Message) -> None:
        """Queue a command and drop queued ones that it overrides."""
        again = command["do"] == "restart"
        while (
            self.pending
            and self.pending[-1]["block"] >= command["block"]
            and (again or self.pending[-1]["do"] == "prompt")
        ):
            self.pending.pop()
        self.pending.append(command)

    def prepare(self, refused: Callable[[str], None]) -> None:
        """Carry out queued commands in order, up to the first restart that is not due at the next block."""
        while self.pending and (self.pending[0]["do"] == "prompt" or self.pending[0]["block"] <= self.block):
            command = self.pending.popleft()
            if command["do"] == "restart":
                self._restart(command)
                continue
            assert self.walking is not None
            try:
                self.walking.change(command["text"], command["block"])
            except UserError as error:
                refused(" ".join(str(error).split()))

    def _restart(self, asked: Message) -> None:
        first = self.walking is None
        self.walking = None  # frees its caches before the next ones are allocated
        told = (asked[name] for name in ("prompt", "seed", "order", "context", "block", "renew"))
        self.walking = begin(self.source, *told)
        if first:
            choice = choose(self.source, self.walking.walk, self.walking.rollout)
            self.stack.enter_context(computing(self.source.denoiser, choice))


def _make(
    source: Generator,
    commands: queue.SimpleQueue[Message | None],
    outlet: BinaryIO,
    fragment_of: Callable[[Tensor], bytes],
    figures: Callable[[str, Tensor], dict[str, float]],
) -> None:
    """Carry out commands and make blocks as far as they allow, until there are no more commands.

    A GPU is given the next block before one is waited for, see `hiar.transfer.lead`; before a wait all are sent.
    """
    process, under_way, sent = psutil.Process(), deque[tuple[int, float, Callable[[], Made]]](), 0.0

    def send(ahead: int) -> None:
        nonlocal sent
        while len(under_way) > ahead:
            block, asked, arrive = under_way.popleft()
            made = arrive()
            data = fragment_of(made.pictures)
            message = {
                "kind": "block",
                "block": block,
                "prompt": made.prompt,
                "pictures": len(made.pictures),
                "seconds": time.monotonic() - max(asked, sent),
                "figures": figures(made.prompt, made.pictures),
                "memory": process.memory_info().rss,
                "latent": hashlib.sha256(made.latent.numpy().tobytes()).hexdigest(),
            }
            write_message(outlet, message, data)
            sent = time.monotonic()

    with ExitStack() as stack:
        making = _Making(source, stack)
        while True:
            while making.block >= making.until or not commands.empty():
                if making.block >= making.until:
                    send(ahead=0)
                command = commands.get()
                if command is None:
                    return
                if command["do"] == "until":
                    making.until = command["block"]
                else:
                    making.take(command)
            making.prepare(lambda line: write_message(outlet, {"kind": "refused", "line": line}))
            assert making.walking is not None
            under_way.append((making.block, time.monotonic(), making.walking.next_block()))
            making.block += 1
            send(ahead=lead(source.device))


def _own_output() -> BinaryIO:
    """Standard output, for messages only: from here on, what libraries print goes to standard error."""
    outlet = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return outlet


def _listen(commands: queue.SimpleQueue[Message | None]) -> None:
    # Not through sys.stdin: Python needs its lock to exit, and this thread would hold that while it waits.
    with open(sys.stdin.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            commands.put(json.loads(line))
    commands.put(None)


def _device(number: int) -> torch.device:
    """A GPU of its own if there are enough, else a shared one; the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)  # for torch calls that name no device
    return device


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
