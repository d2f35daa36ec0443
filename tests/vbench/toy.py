"""Replaces the package `vbench` in tests: the same calls, values from file sizes, and misbehaviour on request.

behave.json in the folder of weights says how each dimension behaves; asked.jsonl there logs every scored video.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import torch

LEAVES_OUT = "left out"


def scored(dimension, path, device, *, progress):
    folder = pathlib.Path(os.environ["VBENCH_CACHE_DIR"])
    behave = folder / "behave.json"
    order = json.loads(behave.read_text()).get(dimension) if behave.exists() else None
    entries = json.loads(pathlib.Path(path).read_text())
    if order == "meet":
        meet(folder / dimension, folder)
    records = []
    for entry in progress(entries):
        assert dimension in entry["dimension"]
        for video in entry["video_list"]:
            records += [one for one in [judged(dimension, video, entry, order, folder, device)] if one]
    if not records:
        raise ZeroDivisionError("division by zero")
    return sum(one["video_results"] for one in records) / len(records), records


def meet(place, folder):
    """Wait until another dimension is being scored at the same time."""
    place.with_suffix(".here").touch()
    end = time.monotonic() + 600
    while len(list(folder.glob("*.here"))) < 2:
        if time.monotonic() > end:
            raise RuntimeError("nobody came")
        time.sleep(0.02)


def judged(dimension, video, entry, order, folder, device):
    target = os.path.realpath(video)
    value = os.path.getsize(target) / 1e5
    print("a line that VBench prints")
    if order == "connect":
        socket.create_connection(("127.0.0.1", 9), timeout=5)
    if order == "wget":
        subprocess.run(["wget", "--version"], check=True)
    if order == "shell":
        subprocess.run("wget --version", shell=True, check=True)  # noqa: S602
    if order == "raise":
        raise RuntimeError("no such luck")
    if order == "kill" and already(folder) >= 35:
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "not a number":
        value = float("nan")
    with (folder / "asked.jsonl").open("a") as asked:
        call = {"dimension": dimension, "video": target, "name": os.path.basename(video), "value": value}
        asked.write(
            json.dumps(
                call
                | {
                    "device": str(device),
                    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
                    "loads": torch.load.keywords,
                    "entry": entry,
                    "isolated": sys.flags.isolated,
                    "pid": os.getpid(),
                    "variables": sorted(os.environ),
                }
            )
            + "\n"
        )
    if order == "hang":
        time.sleep(600)
    parts = {"frame_results": [value, value], "video_sim": value, "cnt_per_video": 1}
    return None if order == LEAVES_OUT else {"video_path": video, "video_results": value} | parts


def looked_at(video):
    """Whether a video is still: whether the file that it links to has an even number of bytes."""
    target = os.path.realpath(video)
    with (pathlib.Path(os.environ["VBENCH_CACHE_DIR"]) / "asked.jsonl").open("a") as asked:
        asked.write(json.dumps({"dimension": "static filter", "video": target}) + "\n")
    return os.path.getsize(target) % 2 == 0


def already(folder):
    path = folder / "asked.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
