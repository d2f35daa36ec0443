"""`hiar import`, `export` and `models`, and commands on an imported student, on the command line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_file import WITHIN, names, rolled_out
from safetensors.torch import load_file
from tiny import relative_error
from torch import Tensor

from hiar import cli
from hiar.config import Context, Conventions, Order
from hiar.errors import UserError
from hiar.grid import make_grid
from hiar.io.video import read_mp4
from hiar.late import let_in
from hiar.models.attention import Bidirectional
from hiar.models.card import Walk, load_card
from hiar.models.denoiser import Denoiser
from hiar.models.generator import load_generator
from hiar.models.pixels import to_video
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import generate
from hiar.schedule import step_sigmas
from hiar.stages import exchange
from hiar.stages.exchange import describe_model, export_checkpoint, import_checkpoint
from hiar.worlds.interface import open_world
from hiar.worlds.wan.exchange import LINKED, send_out

SIZE = ("--height", 32, "--width", 48, "--precision", "no")
PROMPT = "A red fox trots along a snowy ridge at dawn."


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in an empty folder and returns its output, or its error line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["hiar", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert ended.value.code == code, err
        return err.strip().splitlines()[-1] if code else out

    return run


def weights_of(base: Path) -> dict[str, Tensor]:
    return load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="session")
def released(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student as the training codes release it: the base's weights, wrapped, as EMA; other weights as generator."""
    from hiar.worlds.wan.formats.names import to_original

    state = {f"model._fsdp_wrapped_module.{to_original(name)}": value for name, value in weights_of(base).items()}
    path = tmp_path_factory.mktemp("released") / "student.pt"
    torch.save({"generator": {name: value + 1 for name, value in state.items()}, "generator_ema": state}, path)
    return path


@pytest.fixture(scope="session")
def student(released: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released student, imported with HiAR's walk; tests only read it."""
    folder = tmp_path_factory.mktemp("imported") / "student"
    options = {"height": 32, "width": 48, "frames_per_second": 16, "precision": "no", "window": 9}
    import_checkpoint(released, base, folder, "hiar", "generator_ema", options)
    return folder


def test_a_released_student_is_imported_sampled_and_streamed(
    run: Callable[..., str], released: Path, base: Path, tmp_path: Path
) -> None:
    run("import", released, "--base", base, "--as", "hiar", "--weights", "generator_ema", *SIZE, "--out", "im")
    card = load_card(tmp_path / "im")
    assert card.walk is not None
    assert (card.walk.order, card.walk.context) == ("step_first", "output")
    assert (card.video.block, card.video.window, card.schedule.student_steps) == (3, 21, 4)
    assert card.conventions is not None
    assert (card.conventions.given, card.conventions.sinks) == ("clean", "stay")
    held = load_file(tmp_path / "im" / "transformer" / "diffusion_pytorch_model.safetensors")
    expected = weights_of(base)
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)
    request = ("--checkpoint", "im", "--prompt", PROMPT, "--frames", 9, "--seed", 3)
    run("sample", *request, "--out", "videos", "--save-latents")
    video = read_mp4(tmp_path / "videos" / "0000.mp4")
    assert video.shape == (33, 32, 48, 3)
    run("stream", *request, "--out", "stream.mp4")
    streamed = read_mp4(tmp_path / "stream.mp4")
    assert streamed.shape == video.shape
    assert (streamed.float() - video.float()).abs().mean() < 2  # two h264 files of the same frames
    printed = run("models", "im", released, "--base", base)
    assert "weights        generator and generator_ema" in printed and "--weights generator_ema --out" in printed
    assert f"SHA-256        {hashlib.sha256(released.read_bytes()).hexdigest()}\n" in printed
    printed = run("import", released, "--base", base, "--as", "hiar", *SIZE, "--out", "other", code=2)
    assert "holds generator, generator_ema: several sets of weights" in printed
    half = torch.load(released, weights_only=True)
    half["generator"].popitem()
    torch.save(half, "half.pt")
    assert "half.pt: generator: lacks" in run("models", "half.pt", "--base", base, code=2)


def test_readable_checkpoints_are_described_beside_unreadable_ones(
    released: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hiar", "models", "none.pt", str(released), "neither.pt", "--base", str(base)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed, lines = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.startswith(f"{released}\n") and "generator and generator_ema" in printed
    assert [line.partition(":")[0] + line.partition(":")[2].partition(":")[0] for line in lines.splitlines()] == [
        "error none.pt",
        "error neither.pt",
    ]


def test_every_option_of_an_import_is_used(run: Callable[..., str], released: Path, base: Path) -> None:
    """Each value differs from every preset's, and all are given, so no preset is needed."""
    walk = ("--order", "diagonal", "--context", "clean", "--block", 2, "--window", 8, "--sinks", 1)
    schedule = ("--steps", 6, "--shift", 7.5, "--renoise", "euler", "--fps", 10)
    run("import", released, "--base", base, "--weights", "generator", *SIZE, *walk, *schedule, "--out", "im")
    card = load_card(Path("im"))
    assert card.walk is not None
    assert (card.walk.order, card.walk.context) == ("diagonal", "clean")
    assert (card.video.block, card.video.window, card.video.sink_blocks) == (2, 8, 1)
    assert (card.schedule.student_steps, card.schedule.student_shift, card.schedule.renoise) == (6, 7.5, "euler")
    world = open_world(card.world)
    assert (world.height, world.width, world.frames_per_second, card.precision) == (32, 48, 10, "no")


@pytest.mark.parametrize(
    ("options", "schedule", "words"),
    [
        ({}, (3, None, (1.0, 0.757, 0.522)), "3, at 1, 0.757, 0.522, sde"),
        ({"steps": 4}, (4, 8.0, None), "4, shift 8, sde"),  # CausVid's other student
        ({"steps": 4, "shift": 5.0}, (4, 5.0, None), "4, shift 5, sde"),
        ({"levels": (1.0, 0.5)}, (2, None, (1.0, 0.5)), "2, at 1, 0.5, sde"),
    ],
)
def test_causvids_levels_follow_no_shift_unless_steps_are_given(
    released: Path, base: Path, tmp_path: Path, options: dict[str, Any], schedule: object, words: str
) -> None:
    options |= {"height": 32, "width": 48, "frames_per_second": 16, "precision": "no"}
    import_checkpoint(released, base, tmp_path / "im", "causvid", "generator", options)
    card = load_card(tmp_path / "im")
    assert (card.schedule.student_steps, card.schedule.student_shift, card.schedule.student_levels) == schedule
    assert card.walk == Walk(order="block_first", context="finished")
    assert dict(describe_model(tmp_path / "im", None, False))["steps"] == words


def test_levels_stand_for_steps_and_shift(run: Callable[..., str], released: Path, base: Path) -> None:
    request = ("import", released, "--weights", "generator", "--base", base, *SIZE, "--out", "im")
    walk = ("--order", "diagonal", "--context", "clean", "--block", 3, "--window", 9, "--sinks", 0, "--renoise", "sde")
    for also in ("--steps", "--shift"):
        error = run(*request, *walk, "--levels", "1,0.7,0.5", also, 3, code=2)
        assert error == f"error: --levels: sets the number of steps and their noise levels; leave out {also}"
    run(*request, *walk, "--levels", "1,0.7,0.5")
    run("sample", "--checkpoint", "im", "--prompt", PROMPT, "--frames", 3, "--out", "three")
    assert read_mp4(Path("three/0000.mp4")).shape == (9, 32, 48, 3)


def test_a_base_supplies_what_a_file_lacks(run: Callable[..., str], released: Path, base: Path) -> None:
    torch.save({"generator": torch.load(released, weights_only=True)["generator"]}, "one.pt")
    assert "name its --base" in run("models", "one.pt", code=2)
    printed = run("models", "one.pt", "one.pt", "--base", base)
    assert printed.count("one.pt\n") == 2
    assert "heads" in printed


@pytest.mark.parametrize(
    ("preset", "walk"),
    [
        ("hiar", ("step_first", "output")),
        ("self-forcing", ("block_first", "finished")),
        ("causal-forcing", ("block_first", "finished")),
    ],
)
def test_presets_are_the_released_students(
    released: Path, base: Path, tmp_path: Path, preset: str, walk: object
) -> None:
    options = {"height": 480, "width": 832, "frames_per_second": 16, "precision": "bf16"}
    import_checkpoint(released, base, tmp_path / "im", preset, "generator", options)
    card = load_card(tmp_path / "im")
    assert card.walk is not None
    assert (card.walk.order, card.walk.context) == walk
    video, schedule = card.video, card.schedule
    assert (video.block, video.window, video.sink_blocks, video.frames) == (3, 21, 0, 21)
    assert (schedule.student_steps, schedule.student_shift, schedule.renoise) == (4, 5.0, "sde")
    assert (card.precision, card.prediction, card.coordinates) == ("bf16", "flow", False)
    assert card.conventions == Conventions(given="clean", sinks="stay", context_noise=0.0)
    assert (card.stage, card.variant) == ("distill", preset)


def test_given_steps_replace_a_presets_levels(released: Path, base: Path, tmp_path: Path) -> None:
    options = {"height": 480, "width": 832, "frames_per_second": 16, "precision": "bf16"}
    schedules = []
    for out, given in (("own", {}), ("given", {"steps": 4, "shift": 5.0})):
        import_checkpoint(released, base, tmp_path / out, "causvid", "generator", options | given)
        schedules.append(load_card(tmp_path / out).schedule)
    own, given = schedules
    assert own.student_levels is not None
    assert (given.student_steps, given.student_shift, given.student_levels) == (4, 5.0, None)


def test_any_size_that_the_codec_allows(run: Callable[..., str], student: Path) -> None:
    request = ("sample", "--checkpoint", student, "--prompt", PROMPT, "--frames", 3)
    run(*request, "--size", "64x16", "--out", "wide")
    assert read_mp4(Path("wide/0000.mp4")).shape == (9, 16, 64, 3)
    for size, words in (
        ("40x32", "--size = 40x32: width = 40: input should be a multiple of 16"),
        ("0x32", "--size = 0x32: width = 0: input should be greater than or equal to 16"),
        ("big", "--size = big: is not a width and height; write them like 832x480"),
    ):
        assert words in run(*request, "--size", size, "--out", "none", code=2)


WALKS: list[tuple[Order, Context]] = [("step_first", "output"), ("diagonal", "input"), ("block_first", "finished")]


def test_a_clip_is_continued_in_every_order(
    run: Callable[..., str], released: Path, base: Path, tmp_path: Path
) -> None:
    """Three blocks given as a video, two more generated: equals the rollout that is given the encoded blocks."""
    run("import", released, "--base", base, "--as", "hiar", "--weights", "generator", *SIZE, "--out", "im")
    request = ("sample", "--checkpoint", "im", "--prompt", PROMPT, "--seed", 5)
    run(*request, "--frames", 9, "--crf", 1, "--out", "clip")
    run(*request, "--frames", 9, "--crf", 40, "--out", "coarse")
    assert Path("coarse/0000.mp4").stat().st_size < 0.5 * Path("clip/0000.mp4").stat().st_size
    model = load_generator(tmp_path / "im")
    assert model.card.conventions is not None
    clip = to_video(read_mp4(Path("clip/0000.mp4"))[None])
    with torch.no_grad():
        given = model.codec.encode(clip)
    for order, context in WALKS:
        walk = ("--order", order, "--context", context)
        run(*request, "--video", "clip/0000.mp4", "--frames", 15, *walk, "--save-latents", "--out", "on")
        latents = load_file("on/latents.safetensors")["latents"]
        grid = make_grid(context, blocks=5, steps=4, window=7, given=3)
        sigmas = step_sigmas(4, model.card.schedule.student_shift)
        text = model.embed([PROMPT])
        rollout = Rollout(grid, sigmas, model.block_shape, "sde", 5, [0], text, conventions=model.card.conventions)
        expected = generate(model.denoiser, rollout, order, given)
        assert relative_error(latents, expected) < 1e-5, (order, context)


def test_extended_prompts_are_generated_and_short_ones_are_the_captions(run: Callable[..., str], student: Path) -> None:
    Path("short.txt").write_text("A fox.\nA tram.\n")
    Path("long.txt").write_text(f"{PROMPT}\nRain runs down a tram window at night.\n")
    request = ("sample", "--checkpoint", student, "--frames", 3, "--save-latents")
    run(*request, "--prompts", "short.txt", "--extended", "long.txt", "--out", "both")
    run(*request, "--prompts", "long.txt", "--out", "long")
    assert Path("both/captions.txt").read_text() == Path("short.txt").read_text()
    assert Path("long/captions.txt").read_text() == Path("long.txt").read_text()
    assert [json.loads(line) for line in Path("both/prompts.jsonl").read_text().splitlines()] == [
        {"video": "0000.mp4", "caption": "A fox.", "prompt": PROMPT},
        {"video": "0001.mp4", "caption": "A tram.", "prompt": "Rain runs down a tram window at night."},
    ]
    assert Path("both/latents.safetensors").read_bytes() == Path("long/latents.safetensors").read_bytes()
    Path("long.txt").write_text(f"{PROMPT}\n")
    error = run(*request, "--prompts", "short.txt", "--extended", "long.txt", "--out", "none", code=2)
    assert error.startswith("error: long.txt: holds 1 prompts for the 2 of --prompts")


@pytest.mark.parametrize("form", ["self-forcing", "wan", "diffusers"])
def test_an_exported_student_is_imported_again_bit_by_bit(
    run: Callable[..., str], student: Path, base: Path, tmp_path: Path, form: str
) -> None:
    out = "there.pt" if form == "self-forcing" else "there"
    run("export", student, "--to", form, "--out", out)
    chosen = ("--weights", "generator") if form == "self-forcing" else ()
    run("import", out, *chosen, "--base", base, "--as", "self-forcing", *SIZE, "--out", "back")
    (before, after) = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (student, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    if form == "diffusers":
        let_in("transformers")
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline

        pipeline = WanPipeline.from_pretrained(tmp_path / "there")
        x, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 8, 32)
        theirs = pipeline.transformer(x, torch.tensor([500]), text, return_dict=False)[0]
        ours = load_generator(student).denoiser.transformer
        assert relative_error(ours(x, torch.tensor([500]), text, return_dict=False)[0], theirs) < 1e-5


def test_golden_weights_give_their_forwards_and_rollouts(
    run: Callable[..., str], tiny, base: Path, tmp_path: Path
) -> None:
    """The golden file's weights as a released .pt, imported over a base of their sizes."""
    theirs = tmp_path / "base"
    shutil.copytree(base, theirs)
    settings = json.loads((theirs / "transformer" / "config.json").read_text())
    (theirs / "transformer" / "config.json").write_text(json.dumps(settings | tiny.config))
    torch.save({"generator_ema": {f"model.{name}": value for name, value in tiny.weights.items()}}, "golden.pt")
    run("import", "golden.pt", "--base", theirs, "--as", "hiar", *SIZE, "--out", "im")
    card = load_card(tmp_path / "im")
    transformer = open_world(card.world).load_transformer(tmp_path / "im" / "transformer")
    model = Denoiser(transformer, "flow", coordinates=False).requires_grad_(False)
    x, text, sigma = tiny.golden["bidirectional/x"], tiny.golden["text"], torch.tensor([0.625])
    velocity = tiny.golden["bidirectional/velocity/625"]
    ours = (x - model(x, sigma.expand(len(x)), text, Bidirectional())) / 0.625
    assert relative_error(ours, velocity) < 2e-5
    assert card.conventions is not None
    for name in [*names("rollout"), *names("given"), *names("sinks")]:
        order: Order = "block_first" if "finished" in name else "step_first"
        assert relative_error(*rolled_out(model, name, order, "separate", card.conventions)) < WITHIN, name
    run("export", "im", "--to", "self-forcing", "--out", "again.pt")
    again = torch.load("again.pt", weights_only=True)["generator_ema"]
    assert all(torch.equal(again[f"model.{name}"], value) for name, value in tiny.weights.items())


def test_a_refused_import_is_one_line_and_writes_nothing(
    run: Callable[..., str], released: Path, base: Path, tmp_path: Path
) -> None:
    held = torch.load(released, weights_only=True)
    torch.save({"critic": held["generator"]}, "critic.pt")
    torch.save({"generator": dict(list(held["generator"].items())[:-3])}, "lacking.pt")
    Path("truncated.pt").write_bytes(released.read_bytes()[:5000])
    Path("empty.pt").touch()
    Path("code.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    hiar = ("--as", "hiar")
    for source, options, words in (
        ("critic.pt", hiar, "critic.pt: holds critic, but no generator"),
        ("lacking.pt", hiar, "lacks 3 tensors ("),
        ("truncated.pt", hiar, "truncated.pt: is truncated or damaged"),
        ("empty.pt", hiar, "empty.pt: is empty"),
        ("code.pt", hiar, "code of a checkpoint is never run"),
        ("nowhere.pt", hiar, "nowhere.pt: no such file"),
        (released, hiar, "choose weights = generator or generator_ema"),
        (released, ("--as", "hyar"), "--as = hyar: is not a known kind of student; did you mean 'hiar'?"),
        (released, (), "--block, --window, --sinks, --shift, --steps, --renoise, --order, --context: cannot be read"),
        (released, (*hiar, "--weights", "ema"), "--weights = ema: is not a set of weights"),
        (released, (*hiar, "--block", 4), "must be a multiple of block = 4"),
        (released, (*hiar, "--height", 40), "height = 40: "),
        (released, (*hiar, "--renoise", "ode"), "renoise = 'ode'"),
    ):
        error = run("import", source, "--base", base, "--width", 48, "--out", "im", *options, code=2)
        assert words in error, error
        assert error.startswith("error: ")
    assert not Path("ran").exists()
    assert not list(Path().glob("im*"))
    error = run("import", released, "--base", tmp_path / "gone", *hiar, "--out", "im", code=2)
    assert "gone" in error and "nothing is downloaded" in error
    for command in (("sample", "--frames", 3), ("stream",)):
        error = run(*command, "--checkpoint", released, "--prompt", PROMPT, "--out", "im.mp4", code=2)
        assert f"{released}: is a file; name a folder, such as `hiar import` makes" in error


def test_a_refused_export_is_one_line_and_writes_nothing(run: Callable[..., str], student: Path) -> None:
    Path("there").mkdir()
    for arguments, words in (
        ((student, "--to", "onnx", "--out", "x"), "--to = onnx: is not an export format"),
        ((student, "--to", "wan", "--out", "there"), "--out = there: exists already"),
        (("nowhere", "--to", "wan", "--out", "x"), "nowhere/generator.json: no such file"),
    ):
        error = run("export", *arguments, code=2)
        assert words in error, error
    assert [path.name for path in Path().iterdir()] == ["there"]
    assert list(Path("there").iterdir()) == []
    shutil.copytree(student, "altered")
    weights = Path("altered", "transformer", "diffusion_pytorch_model.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"safetensors: does not match its manifest \(SHA-256 differs\)"):
        export_checkpoint(Path("altered"), "wan", Path("x"))
    assert not Path("x").exists()


def contents(folder: Path) -> dict[str, bytes | str]:
    """The contents of a folder: bytes of files, targets of links."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    linked = {name: os.readlink(path) for name, path in found.items() if path.is_symlink()}
    return linked | {name: path.read_bytes() for name, path in found.items() if name not in linked and path.is_file()}


def test_links_of_an_export_lead_to_its_base_however_that_is_named(
    student: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    send_out(student / "transformer", Path(base.name), "diffusers", tmp_path / "there")
    assert {name: (tmp_path / "there" / name).resolve() for name in LINKED} == {name: base / name for name in LINKED}


@pytest.mark.parametrize("form", ["diffusers", "wan"])
def test_an_export_after_an_interrupted_one_equals_an_undisturbed_one(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    links: list[Path] = []
    link = Path.symlink_to

    def link_then_interrupt(path: Path, target: Path) -> None:
        link(path, target)
        links.append(path)
        if len(links) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "symlink_to", link_then_interrupt)
        export_checkpoint(student, "diffusers", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    for name in ("there", "undisturbed"):
        export_checkpoint(student, form, tmp_path / name)
    assert contents(tmp_path / "there") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("before", ["generator", "generator_ema"])
def test_an_import_after_an_interrupted_one_equals_an_undisturbed_one(
    released: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    options = {"height": 32, "width": 48, "frames_per_second": 8, "precision": "no", "shift": 3.0, "sinks": 1}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exchange, "save_card", interrupt)
        import_checkpoint(released, base, tmp_path / "im", "hiar", before, options)
    assert not (tmp_path / "im").exists()
    for name in ("im", "undisturbed", "im"):  # the last one replaces an existing one
        import_checkpoint(released, base, tmp_path / name, "hiar", "generator_ema", options)
    weights = Path("transformer", "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "im" / weights).read_bytes() == (tmp_path / "undisturbed" / weights).read_bytes()
    card = load_card(tmp_path / "im")
    assert card == load_card(tmp_path / "undisturbed")
    assert (card.schedule.student_shift, card.video.sink_blocks) == (3.0, 1)  # as given, not the preset's
    assert card.world.frames_per_second == 8


def test_a_base_that_is_another_now_is_refused(
    run: Callable[..., str], released: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "base")
    run("import", released, "--weights", "generator", "--base", "base", "--as", "hiar", *SIZE, "--out", "im")
    config = tmp_path / "base" / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    request = ("--checkpoint", "im", "--prompt", PROMPT, "--frames", 9, "--out", "videos")
    assert "its codec has changed" in run("sample", *request, code=2)
    config.write_text(config.read_text()[:-1])
    weights = tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "to sample it" in run("models", "im")  # size and time are unchanged
    assert "its codec has changed" in run("models", "im", "--verify", code=2)
    shutil.rmtree(tmp_path / "base")
    assert "no such folder; restore the base model" in run("sample", *request, code=2)
    assert not Path("videos").exists()
