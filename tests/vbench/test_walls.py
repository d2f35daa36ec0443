"""VBench's process is isolated: no secrets, no network, and nothing that depends on the working directory."""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from vbench_toys import film, requests_of

from hiar.errors import UserError
from hiar.vbench.asking import alone_on, lend, open_environ
from hiar.vbench.runner import score_folder
from hiar.vbench.worker import keep_errors, load_everything, stay_offline

SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "MINIO_ROOT_SECRET",
    "HTTP_AUTH",
    "hf_token",
    "api_key",
    "Db_Passwd",
)


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_goes_to_third_party_code(monkeypatch, name):
    monkeypatch.setenv(name, "not theirs")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = open_environ()
    assert name not in found
    assert found["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("event", "details"),
    [
        ("subprocess.Popen", ("/usr/bin/wget", ["wget", "x"], None, None)),
        ("subprocess.Popen", ("x", ["/usr/bin/curl", "-O", "x"], None, None)),
        ("subprocess.Popen", ("git", "git clone x", None, None)),
        ("subprocess.Popen", (b"sh", [b"sh", b"-c", b"cd x && curl y"], None, None)),
        ("os.system", (b"mkdir -p x; wget y",)),
        ("socket.connect", (None, ("192.0.2.1", 443))),
        ("socket.connect", (None, ("2001:db8::1", 443, 0, 0))),
    ],
)
def test_network_access_is_refused(event, details):
    with pytest.raises(ConnectionRefusedError, match="nothing is downloaded while it scores"):
        stay_offline(event, details)


@pytest.mark.parametrize(
    ("event", "details"),
    [
        ("subprocess.Popen", ("uname", ["uname", "-p"], None, None)),
        ("subprocess.Popen", ("ldconfig", "ldconfig -p wgetter", None, None)),
        ("os.system", (b"ls",)),
        ("socket.connect", (None, "/run/here.sock")),
        ("open", ("wget", "r", 0)),
    ],
)
def test_everything_else_is_allowed(event, details):
    stay_offline(event, details)


def test_folders_may_be_relative_paths(toy, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(Path("videos/0000.mp4"), 4, 0)
    Path("videos/captions.txt").write_text("a bird\n")
    scores = score_folder(
        Path("videos"), ["motion_smoothness"], Path("out"), environment=toy, weights=weights.relative_to(tmp_path)
    )
    assert scores.failed == {}
    [call] = requests_of(weights)
    assert call["video"] == str(tmp_path / "videos" / "0000.mp4")
    Path("file.pth").write_bytes(b"net")
    lend(Path("home"), Path("file.pth"))
    assert Path("home/hub/checkpoints/file.pth").read_bytes() == b"net"


@pytest.mark.parametrize(
    ("seen", "device", "gpus"),
    [
        (None, "cuda:3", "3"),
        ("6,7", "cuda:1", "7"),
        ("GPU-5f,MIG-1a", "cuda:0", "GPU-5f"),
        ("6,7", "cuda", "6,7"),
        (None, "cpu", None),
    ],
)
def test_a_process_sees_its_own_gpu_alone(monkeypatch, seen, device, gpus):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    name, variables = alone_on(device)
    assert (name, variables.get("CUDA_VISIBLE_DEVICES")) == (device.partition(":")[0], gpus)


@pytest.mark.parametrize(("seen", "count"), [("6,7", 2), ("", 0)])
def test_a_gpu_that_is_not_shown_is_refused(monkeypatch, seen, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    with pytest.raises(UserError, match=f"^--device = cuda:2: CUDA_VISIBLE_DEVICES = {seen} has {count} GPUs"):
        alone_on("cuda:2")


def test_a_file_with_numpys_numbers_is_read(monkeypatch, tmp_path):
    """Such as AMT's, which holds the state of its optimizer."""
    monkeypatch.setattr(torch, "load", torch.load)  # undone at the end
    torch.save({"optim": {"lr": np.cos(0.5)}}, tmp_path / "amt-s.pth")
    with pytest.raises(UnpicklingError, match="weights_only"):
        torch.load(tmp_path / "amt-s.pth")
    load_everything()
    assert torch.load(tmp_path / "amt-s.pth") == {"optim": {"lr": np.cos(0.5)}}


def test_weights_saved_on_a_gpu_are_read_without_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "load", torch.load)  # undone at the end
    with monkeypatch.context() as there:
        there.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")
        torch.save({"weight": torch.arange(3.0)}, tmp_path / "net.pth")
    load_everything()
    weight = torch.load(tmp_path / "net.pth")["weight"]
    assert (weight.device.type, weight.tolist()) == ("cpu", [0.0, 1.0, 2.0])


def test_a_swallowed_error_is_kept():
    class Detector:
        def detect(self, picture):
            return 1 / picture

    errors: list[Exception] = []
    keep_errors(Detector, "detect", errors)
    assert Detector().detect(2) == 0.5
    assert errors == []
    with pytest.raises(ZeroDivisionError):
        Detector().detect(0)
    assert [type(error) for error in errors] == [ZeroDivisionError]
