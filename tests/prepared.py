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
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARIES = (
    *("torch.distributed", "torch.nn.attention", "accelerate", "safetensors.torch", "pydantic", "yaml", "typer", "av"),
    *("diffusers.models.transformers.transformer_wan", "diffusers.models.autoencoders.autoencoder_kl_wan"),
    *("PIL.Image", "jinja2", "filelock", "psutil"),
)
LARGEST = 1 << 20  # bytes that a command with its variables may take


class Prepared:
    """The process that forks; it runs one command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, os.path.realpath(__file__), str(theirs.fileno())]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=null, stdout=null, stderr=null
        )
        theirs.close()
        atexit.register(self.end)

    def run(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `hiar`, once it and all that inherited its pipes have ended."""
        pipes = [os.pipe() for _ in range(2)]
        request = json.dumps([arguments, os.fspath(folder), dict(environment)]).encode()
        socket.send_fds(self.channel, [request], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        with ThreadPoolExecutor() as readers:
            out, err = readers.map(_read, [end for end, _ in pipes])
        return int(self.channel.recv(LARGEST)), out, err

    def end(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.wait()


def _read(end: int) -> str:
    with open(end, encoding="utf-8") as pipe:
        return pipe.read()


def inherited(environment: Mapping[str, str], late: tuple[str, ...]) -> object:
    """What libraries may read before a command is known: variables without a prefix of ``late``, and process limits."""
    limits = [resource.getrlimit(value) for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    return {name: value for name, value in environment.items() if not name.startswith((*late, "PYTEST_"))}, limits


def _next(channel: socket.socket) -> list[str]:
    """Fork for each command and return its arguments in the child; the parent stays until the channel is closed."""
    while True:
        request, pipes, *_ = socket.recv_fds(channel, LARGEST, 2)
        if not request:
            sys.exit()
        if not (child := os.fork()):
            break
        for end in pipes:
            os.close(end)
        _, status = os.waitpid(child, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())
    channel.close()
    for number, end in enumerate(pipes, 1):
        os.dup2(end, number)
        os.close(end)
    arguments, folder, environment = json.loads(request)
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
