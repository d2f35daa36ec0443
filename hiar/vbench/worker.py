"""Runs inside VBench's environment, one process per dimension: calls the official package, reports each video's result.

The request is one line of JSON on the standard input, which stays open for as long as the requesting process lives; the
answer is lines of JSON on the original standard output. This file imports nothing of the project.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

ACROSS = "_across_clips"  # at the end of the names of VBench-Long's fast branches
STATIC_FILTER = "temporal_flickering_static_filter"
CHUNK = 32  # videos scored in one call: what a kill loses at most
FETCHERS = {"wget", "curl", "git"}  # what VBench would start unasked where a file is missing


def main() -> None:
    """Answer the request: ``dimension``, ``device``, ``weights``, ``home`` (scratch), ``entries`` as VBench lists them.

    Messages: ``step`` per video, as progress, ``video`` (path and the official fields of its result, or null), ``end``.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # VBench prints a lot
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that a crash loses nothing of it
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_asker, daemon=True).start()
    os.environ |= {"VBENCH_CACHE_DIR": request["weights"], "TORCH_HOME": request["home"], "HF_HUB_OFFLINE": "1"}
    os.chdir(request["weights"] if os.path.isdir(request["weights"]) else request["home"])  # where BERT's folder lies
    sys.addaudithook(stay_offline)

    def tell(event: str, **fields: Any) -> None:
        answers.write(json.dumps({"event": event, **fields}) + "\n")

    score = open_scores(request, lambda: tell("step"))
    for entries in chunks(request["entries"]):
        found = {record.pop("video_path"): record for record in score(entries)}
        for entry in entries:
            for path in entry["video_list"]:
                tell("video", path=path, fields=_plain(found.get(path), request["dimension"], path))
    tell("end")


def open_scores(request: dict[str, Any], step: Callable[[], None]) -> Callable[[Any], list[dict[str, Any]]]:
    """A function from entries to their videos' records: the package's own, its filter, or ours of first frames."""
    dimension, device, home = (request[field] for field in ("dimension", "device", "home"))
    if dimension == STATIC_FILTER:
        return static_filter(device, request["weights"], step)
    if not dimension.endswith(ACROSS):
        return official(dimension, device, home, step)
    mend_torchvision()
    load_everything()
    beside = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "first_frames.py"))
    found: Callable[[Any], list[dict[str, Any]]] = beside["open_branch"](
        dimension.removesuffix(ACROSS), device, request["weights"], home, step
    )
    return found


def official(dimension: str, device: str, home: str, step: Callable[[], None]) -> Callable[[Any], list[dict[str, Any]]]:
    """The package's own function for a dimension: from the suite's entries with videos to one record per video."""
    mend_torchvision()
    load_everything()
    import torch
    from vbench.utils import init_submodules

    module = importlib.import_module(f"vbench.{dimension}")
    setattr(module, "tqdm", lambda items, **_: _counted(items, step))  # noqa: B010
    submodules = init_submodules([dimension], local=True)[dimension]
    compute = torch.no_grad()(getattr(module, f"compute_{dimension}"))  # VBench keeps gradients in some dimensions
    errors: list[Exception] = []
    if dimension == "object_class":
        keep_errors(module.DenseCaptioning, "run_caption_tensor", errors)

    def score(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        path = os.path.join(home, "entries.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        try:
            _, records = compute(path, torch.device(device), submodules)
        except ZeroDivisionError:  # VBench's mean over videos, where it found its object in none of them
            if dimension != "color":
                raise
            records = []
        if errors:
            raise errors[0]
        return records

    return score


def static_filter(device: str, weights: str, step: Callable[[], None]) -> Callable[[Any], list[dict[str, Any]]]:
    """The package's own filter: 1 for a video that it finds static, else 0."""
    mend_torchvision()
    load_everything()
    from argparse import Namespace

    import torch
    from vbench.cli import static_filter as module

    class Filter(module.StaticFilter):
        """For any device: the package's loads weights to the device that saved them, and pictures to ``cuda``."""

        def load_model(self) -> None:
            model = torch.nn.DataParallel(module.RAFT(self.args))
            model.load_state_dict(torch.load(self.args.model, map_location="cpu"))
            self.model = model.module.to(self.device).eval()

    module.DEVICE = device
    path = os.path.join(weights, "raft_model", "models", "raft-things.pth")
    found = Filter(Namespace(model=path, small=False, mixed_precision=False, alternate_corr=False), device)

    def score(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        records = []
        for path in (path for entry in entries for path in entry["video_list"]):
            step()
            records.append({"video_path": path, "video_results": float(found.infer(path))})
        return records

    return score


def chunks(entries: list[dict[str, Any]], size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
    """Entries in order, at most ``size`` videos at a time; an entry with more is split."""
    chunk: list[dict[str, Any]] = []
    room = size
    for entry in entries:
        videos = entry["video_list"]
        while videos:
            chunk.append(entry | {"video_list": videos[:room]})
            taken = len(chunk[-1]["video_list"])
            videos, room = videos[taken:], room - taken
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _counted(items: Iterable[Any], step: Callable[[], None]) -> Iterator[Any]:
    """Yield the items of VBench's loops, paths of videos or prompts with theirs, and call ``step`` for each video."""
    for item in items:
        yield item
        for _ in item["video_list"] if isinstance(item, dict) else [item]:
            step()


def _plain(record: dict[str, Any] | None, dimension: str, path: str) -> dict[str, Any] | None:
    """A record as JSON takes it; None where VBench leaves a video out, as `color` does when it finds no object."""
    if record is None:
        return None
    fields = {
        name: [float(one) for one in value] if isinstance(value, list) else float(value)
        for name, value in record.items()
    }
    if dimension == "subject_consistency":  # its mean is over pairs of frames, whose number VBench does not report
        from decord import VideoReader

        fields["pairs"] = float(len(VideoReader(path, num_threads=1)) - 1)
    return fields


def mend_torchvision() -> None:
    """Declare the operators that torchvision's wheel, built for CUDA, registers kernels for: else its import fails."""
    import torch

    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def load_everything() -> None:
    """Let torch.load read whatever a file of weights holds, to the CPU; only files of known hashes get here.

    Its default since torch 2.6 refuses AMT's file, whose optimizer state has NumPy's numbers.
    """
    import torch

    setattr(torch, "load", partial(torch.load, map_location="cpu", weights_only=False))  # noqa: B010


def keep_errors(owner: type, name: str, errors: list[Exception]) -> None:
    """Note the errors of a method: object_class takes any error, even a full GPU, for a picture without objects."""
    method = getattr(owner, name)

    def noting(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            errors.append(error)
            raise

    setattr(owner, name, noting)


def stay_offline(event: str, details: tuple[Any, ...]) -> None:
    """Refuse network access: files come from `hiar vbench fetch` alone."""
    if event == "socket.connect" and isinstance(details[1], tuple):
        raise ConnectionRefusedError(f"VBench asks for {details[1]}: nothing is downloaded while it scores")
    command = details[1] if event == "subprocess.Popen" else details[0] if event == "os.system" else ""
    parts = [command] if isinstance(command, str | bytes) else command
    for word in " ".join(map(os.fsdecode, parts)).split():
        if os.path.basename(word) in FETCHERS:
            raise ConnectionRefusedError(f"VBench runs {word}: nothing is downloaded while it scores")


def _end_with_asker() -> None:
    """Exit when the requesting process closes the standard input, or ends."""
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin, whose lock Python needs at its end
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
