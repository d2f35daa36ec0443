"""A process that has imported the libraries that take commands seconds to import, and forks for each command.

Each fork imports hiar itself and runs it as `python -m hiar` does, with the folder, the environment variables and the
pipes that it is given. Only what libraries read on import is inherited; a command that needs other values there has to
be started as a process of its own (see `inherited`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

LIBRARIES = (
    *("torch.distributed", "torch.nn.attention", "accelerate", "safetensors.torch", "pydantic", "yaml", "typer", "av"),
    *("diffusers.models.transformers.transformer_wan", "diffusers.models.autoencoders.autoencoder_kl_wan"),
    *("PIL.Image", "jinja2", "filelock", "psutil"),
)
LARGEST = 1 << 20  # bytes that a command with its variables may take
NUMBER = struct.Struct("i")  # a process ID, then its exit code


class Forked(subprocess.Popen[str]):
    """A running command. It is no child of this process, but is waited for, signalled and read from like one."""

    def __init__(self, arguments: Sequence[str], status: int, pipes: Sequence[IO[str] | None]) -> None:
        self.args, self.stdin, self.returncode = arguments, None, None
        self.stdout, self.stderr = pipes
        self._child_created = False  # else subprocess would reap it
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115 (closed with this object)
        self.pid = self._read_number()

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._read_number()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._read_number()
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002
        """What it writes to the pipes until all that inherited them have ended; with a timeout, until it has ended."""
        assert input is None
        with ThreadPoolExecutor() as readers:
            texts = [readers.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # else the readers would not end
                raise
            out, err = [text.result() if text else None for text in texts]
        return out, err

    def _read_number(self) -> int:
        number: int = NUMBER.unpack(self._status.read(NUMBER.size))[0]
        return number


class Prepared:
    """The process that forks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, os.path.realpath(__file__), str(theirs.fileno())]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=null, stdout=null, stderr=null
        )
        theirs.close()
        atexit.register(self.end)

    def start(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *outputs: Any, session: bool
    ) -> Forked:
        """Start `hiar`. outputs: files for stdout and stderr, or subprocess.PIPE; session: in a session of its own."""
        ours, theirs, opened = [], [], []
        for output in outputs:
            if output == subprocess.PIPE:
                reading, writing = os.pipe()
                opened.append(writing)
                ours.append(open(reading, encoding="utf-8"))  # noqa: SIM115 (closed by who reads)
            else:
                writing = output.fileno()
                ours.append(None)
            theirs.append(writing)
        status, writing = os.pipe()
        request = json.dumps([list(arguments), os.fspath(folder), dict(environment), session]).encode()
        socket.send_fds(self.channel, [request], [*theirs, writing])
        for end in (*opened, writing):
            os.close(end)
        return Forked(arguments, status, ours)

    def end(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.wait()


def inherited(environment: Mapping[str, str], late: tuple[str, ...]) -> object:
    """What libraries may read before a command is known: variables without a prefix of ``late``, and process limits."""
    limits = [resource.getrlimit(value) for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    return {name: value for name, value in environment.items() if not name.startswith((*late, "PYTEST_"))}, limits


def _next(channel: socket.socket) -> list[str]:
    """Fork for each command and return its arguments in the child; the parent stays until the channel is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        request, ends, *_ = socket.recv_fds(channel, LARGEST, 3)
        if not request:
            sys.exit()
        if not os.fork():
            break
        for end in ends:
            os.close(end)
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *pipes, status = ends
    arguments, folder, environment, session = json.loads(request)
    if child := os.fork():
        for end in pipes:
            os.close(end)
        _, ended = os.waitpid(child, 0)
        os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
        os._exit(0)
    if session:
        os.setsid()
    os.write(status, NUMBER.pack(os.getpid()))  # now that its group is its own
    os.close(status)
    for number, end in enumerate(pipes, 1):
        os.dup2(end, number)
        os.close(end)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(arguments)


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(("transformers", "scipy"))  # type: ignore[arg-type]  # as hiar/late.py has it
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    sys.argv = ["hiar", *_next(socket.socket(fileno=int(sys.argv[1])))]
    importlib.import_module("numpy.random").seed()  # a different seed in each process, as without a fork
    runpy.run_module("hiar", run_name="__main__", alter_sys=True)
