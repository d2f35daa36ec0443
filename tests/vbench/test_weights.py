"""Which files may be loaded, and how they are downloaded."""

import hashlib
import http.server
import json
import threading
import zipfile

import pytest
import torch
from vbench_toys import build_environment, lay_weights

from hiar import cli
from hiar.errors import UserError
from hiar.vbench import fetch as fetching
from hiar.vbench.doctor import examine, require_runnable
from hiar.vbench.environment import find_environment
from hiar.vbench.fetch import fetch
from hiar.vbench.weights import WEIGHTS, Weight, approve, inspect

AMT, RAFT = "amt_model/amt-s.pth", "raft_model/models/raft-things.pth"
CLIP, MUSIQ = "clip_model/ViT-B-32.pt", "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"


def test_each_dimension_says_what_it_lacks(environment, tmp_path):
    findings = {one.dimension: one.problems for one in examine(environment, tmp_path)}
    assert len(findings) == 16
    assert [name for name, problems in findings.items() if not problems] == ["temporal_flickering"]
    assert len(findings["subject_consistency"]) == 4
    [clip] = findings["background_consistency"]
    assert str(tmp_path / CLIP) in clip
    assert "is missing" in clip
    assert WEIGHTS[CLIP].sha256 in clip
    for problem, lacks in zip(findings["color"], ("detectron2", "lvis", "boto3", "densecap", "vocab.txt"), strict=True):
        assert lacks in problem
    with pytest.raises(UserError, match=r"^background_consistency: .*ViT-B-32.pt: is missing"):
        require_runnable(examine(environment, tmp_path, ["temporal_flickering", "background_consistency"]))
    for name, more in (("background_consistency", 0), ("overall_consistency", 1), ("subject_consistency", 3)):
        with pytest.raises(UserError) as caught:
            require_runnable(examine(environment, tmp_path, [name]))
        assert str(caught.value).endswith(f" (and {more} more: `hiar vbench doctor`)") == (more > 0)


def test_with_all_weights_twelve_dimensions_run_and_hashes_are_reported(environment, tmp_path):
    findings = examine(environment, lay_weights(tmp_path))
    assert [one.dimension for one in findings if one.problems] == [
        "object_class", "multiple_objects", "color", "spatial_relationship",
    ]  # fmt: skip
    [amt] = [one for one in findings if one.dimension == "motion_smoothness"]
    assert amt.weights == {AMT: hashlib.sha256((tmp_path / AMT).read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("torch_", "torchvision", "fits"),
    [("2.13.0+cpu", "0.28.0", False), ("2.13.0+cpu", "0.28.0+cpu", True), ("2.13.0", "0.28.0", True)],
)
def test_grit_needs_torchvisions_operators(tmp_path, torch_, torchvision, fits):
    """Those of a wheel for GPUs do not load beside a torch without; VBench's other networks do not need them."""
    environment = find_environment(build_environment(tmp_path / "venv"))
    for name, version in (("torch", torch_), ("torchvision", torchvision)):
        place = environment.packages / f"{name}-{version}.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    weights = lay_weights(tmp_path / "weights")
    findings = {one.dimension: one.problems for one in examine(environment, weights, ["color", "dynamic_degree"])}
    told = f"torchvision {torchvision} in {environment.packages} is built for GPUs, torch {torch_} is not, "
    assert [problem.startswith(told) for problem in findings["color"]].count(True) == (not fits)
    assert findings["dynamic_degree"] == ()


def unapproved_file(folder, name):
    """A file that torch can load but that is not approved."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.zeros(2)}, path)
    return path


def test_a_file_without_a_published_hash_needs_approval(tmp_path):
    path = unapproved_file(tmp_path, AMT)
    assert "its publisher gives no hash" in inspect(tmp_path, AMT).problem
    assert approve(tmp_path, AMT) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert inspect(tmp_path, AMT).problem is None
    torch.save({"a": torch.ones(2)}, path)
    assert "is not the file you approved" in inspect(tmp_path, AMT).problem


def test_a_file_with_a_published_hash_must_match_it(tmp_path):
    unapproved_file(tmp_path, MUSIQ)
    assert "should be 358bb6af" in inspect(tmp_path, MUSIQ).problem
    approve(tmp_path, MUSIQ)  # for users who insist
    assert inspect(tmp_path, MUSIQ).problem is None


def test_the_first_digits_of_a_hash_are_enough(tmp_path, monkeypatch):
    digest = hashlib.sha256(unapproved_file(tmp_path, MUSIQ).read_bytes()).hexdigest()
    for published, fits in ((digest[:8], True), (digest, True), (digest[1:9], False)):
        monkeypatch.setitem(WEIGHTS, MUSIQ, WEIGHTS[MUSIQ]._replace(sha256=published))
        assert (inspect(tmp_path, MUSIQ).problem is None) == fits


def test_archives_are_distinguished_by_their_content(tmp_path):
    """Weights in both formats of torch.save, and a TorchScript network; neither kind is taken for the other."""
    amt, clip = unapproved_file(tmp_path, AMT), unapproved_file(tmp_path, CLIP)
    script = torch.jit.script(torch.nn.Linear(2, 2))
    for old in (True, False):
        torch.save({"a": torch.zeros(2)}, amt, _use_new_zipfile_serialization=not old)
        assert "its publisher gives no hash" in inspect(tmp_path, AMT).problem
    assert "is not a TorchScript archive" in inspect(tmp_path, CLIP).problem
    script.save(clip)
    assert "SHA-256" in inspect(tmp_path, CLIP).problem
    for path, name in ((amt, AMT), (clip, CLIP)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.txt", "neither")
        assert "is not " in inspect(tmp_path, name).problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (AMT, b"<!DOCTYPE html><html>", "is a web page"),
        (AMT, b"\n<html lang='en'>", "is a web page"),
        (AMT, b"\x80\x04\x95", "is not a file of torch.save"),
        (AMT, b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (AMT, b"\x93NUMPY", "is not a file of torch.save"),
        (AMT, b"", "is not a file of torch.save"),
        ("dreamsim/clip_vitb16_pretrain.pth.tar", b"a tar", "is not a file of torch.save"),
        (CLIP, b"\x80\x02}q\x00.", "is not a TorchScript archive"),
        ("ViCLIP/bpe_simple_vocab_16e6.txt.gz", b"plain", "is not compressed"),
        ("ViCLIP/bpe_simple_vocab_16e6.txt.gz", b"\x1f\x9d", "is not compressed"),  # not gzip
    ],
)
def test_another_format_is_neither_loaded_nor_approved(tmp_path, name, content, message):
    path = unapproved_file(tmp_path, name)
    path.write_bytes(content)
    assert message in inspect(tmp_path, name).problem
    with pytest.raises(UserError, match=message):
        approve(tmp_path, name)


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
def test_a_broken_list_of_approvals_is_refused(tmp_path, content):
    unapproved_file(tmp_path, AMT)
    (tmp_path / "approved.json").write_text(content)
    with pytest.raises(UserError, match=r"approved.json: .*approve the files again"):
        inspect(tmp_path, AMT)


def test_no_environment(tmp_path):
    with pytest.raises(UserError, match="make vbench"):
        find_environment(tmp_path)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder served by a server on this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path != "/cut.pth":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"0123")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_fetched_file_is_complete_and_right_or_nothing_changes(served, environment, tmp_path, monkeypatch):
    folder, address = served
    archives, weights = tmp_path / "archives", tmp_path / "weights"
    archives.mkdir()
    content = b"weights " * 300_000  # more than one read
    (folder / "amt-s.pth").write_bytes(content)
    digest, size = hashlib.sha256(content).hexdigest(), len(content)

    def source(**facts):
        monkeypatch.setitem(WEIGHTS, AMT, Weight(**{"url": f"{address}/amt-s.pth"} | facts))

    source(sha256=digest, size=size)
    place = fetch(weights, AMT, environment, archives)
    assert place == weights / AMT
    assert place.read_bytes() == content
    place.write_bytes(b"mine")
    for facts, message in [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"sha256": digest[1:9]}, "SHA-256"),
        ({"sha256": digest, "size": size + 1}, "should be"),
        ({"sha256": digest, "size": size - 1}, "should be"),
        ({"url": f"{address}/none.pth"}, "cannot be fetched"),
        ({"url": f"{address}/cut.pth"}, "after 4 of 100 bytes"),
        ({"url": "http://127.0.0.1:9/amt-s.pth"}, "cannot be fetched"),
        ({"member": "models/raft-things.pth"}, "has no models/raft-things.pth"),
    ]:
        source(**facts)
        with pytest.raises(UserError, match=message):
            fetch(weights, AMT, environment, archives)
        assert place.read_bytes() == b"mine"
        assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_member_of_an_archive_is_fetched(served, environment, tmp_path, monkeypatch):
    folder, address = served
    with zipfile.ZipFile(folder / "models.zip", "w") as archive:
        archive.writestr("models/raft-things.pth", b"flow")
    monkeypatch.setitem(WEIGHTS, RAFT, WEIGHTS[RAFT]._replace(url=f"{address}/models.zip"))
    assert fetch(tmp_path / "weights", RAFT, environment, tmp_path).read_bytes() == b"flow"


def test_an_archive_of_several_files_is_fetched_once(served, toy, tmp_path, monkeypatch):
    folder, address = served
    names = ["dreamsim/ensemble_lora/adapter_config.json", "dreamsim/clip_vitb16_pretrain.pth.tar"]
    with zipfile.ZipFile(folder / "one.zip", "w") as archive:
        for name in names:
            member = WEIGHTS[name].member
            assert name.endswith(member)
            archive.writestr(member, name)
            monkeypatch.setitem(WEIGHTS, name, WEIGHTS[name]._replace(url=f"{address}/one.zip"))
    downloaded, download = [], fetching._download
    monkeypatch.setattr(fetching, "_download", lambda url, to: (downloaded.append(url), download(url, to)))
    weights = tmp_path / "weights"
    monkeypatch.setattr(
        "sys.argv", ["hiar", "vbench", "fetch", *names, "--weights", str(weights), "--environment", str(toy)]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert [(weights / name).read_text() for name in names] == names
    assert downloaded == [f"{address}/one.zip"]
    assert [path.name for path in weights.iterdir()] == ["dreamsim"]  # the archive is removed


def test_a_file_inside_a_package_needs_no_network(environment, tmp_path, monkeypatch):
    name = "ViCLIP/bpe_simple_vocab_16e6.txt.gz"
    packages = tmp_path / "packages"
    (packages / "clip").mkdir(parents=True)
    (packages / "clip" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"words")
    digest = hashlib.sha256(b"words").hexdigest()
    monkeypatch.setitem(WEIGHTS, name, Weight("http://127.0.0.1:9/x", digest, 5))
    assert fetch(tmp_path, name, environment._replace(packages=packages), tmp_path).read_bytes() == b"words"


def test_approvals_are_kept_side_by_side(tmp_path):
    for name in (AMT, RAFT):
        unapproved_file(tmp_path, name)
        approve(tmp_path, name)
    assert set(json.loads((tmp_path / "approved.json").read_text())) == {AMT, RAFT}
