import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sampled import FRAMES, VIDEOS, sampled_workspace, small_params, true_clips, write_samples

from hiar.errors import UserError
from hiar.parameters import merge, parse_params
from hiar.report.sheet import CELL, FOOT, GAP, HEAD, LABEL, contact_sheet
from hiar.stages import report, score
from hiar.stages.comparison import contenders, nested, read_captions, read_summary
from hiar.vbench.dimensions import DIMENSIONS, SEMANTIC

MODELS = ["True world", "Teacher", "Self-Forcing · init", "HiAR · init", "Self-Forcing", "HiAR"]
MODELS += ["HiAR without forward-KL"]


class Page(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def params():
    return small_params()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("reported")
    sampled_workspace(folder, params)
    score.run(params, folder)
    report.run(params, folder)
    return folder


@pytest.fixture(scope="module")
def text(workspace):
    return (workspace / "reports" / "index.html").read_text()


def test_the_page_refers_to_nothing_outside_itself(text):
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "poster", "srcset", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, name, address)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_every_prompt_has_a_video_of_every_model(text, params, workspace):
    videos = Page(text).all("video")
    prompts = true_clips(params, 0, FRAMES)[1][: params.report.videos]
    assert [video["aria-label"] for video in videos] == [f"{model}: {prompt}" for prompt in prompts for model in MODELS]
    assert all("muted" in video and "loop" in video and "playsinline" in video for video in videos)
    folders = [one.samples(workspace) for one in contenders(params) if one.seed == params.seeds[0]]
    for row, first in enumerate(range(1, len(videos), len(MODELS))):  # after the true world's videos
        for video, folder in zip(videos[first:], folders, strict=False):
            kind, _, data = video["src"].partition(",")
            assert kind == "data:video/mp4;base64"
            assert base64.b64decode(data, validate=True) == (folder / f"{row:04d}.mp4").read_bytes()


def test_both_seeds_are_pooled(text, params, workspace):
    rows = read_summary(params, workspace)
    means = [row["metrics"]["good"]["mean"] for row in rows if (row["stage"], row["variant"]) == ("init", "hiar")]
    assert len(means) == len(params.seeds)
    row = re.search(r"<tr>\s*<th scope=\"row\"><span[^>]*></span>HiAR · init.*?</tr>", text, re.DOTALL)[0]
    assert f"<td>{sum(means) / 2:.3f}" in row
    assert f"<td>{params.sample.videos * 2}</td>" in row
    assert "Pooled over 2 training seeds: the mean of their means" in text


def test_the_true_worlds_row_pools_both_seeds_too(text, params, workspace):
    truth = json.loads((workspace / "metrics" / "world.json").read_text())
    row = re.search(r"<tr class=\"reference\"><th scope=\"row\"><span[^>]*></span>True world.*?</tr>", text, re.DOTALL)[
        0
    ]
    assert f"<td>{sum(one['metrics']['residual']['mean'] for one in truth) / 2:.3f}" in row
    assert f"<td>{params.sample.videos * 2}</td>" in row


def test_the_page_lists_seeds_and_videos(text):
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert (facts["Seeds"], facts["Videos a model"]) == ("0, 1", str(VIDEOS))


def test_the_page_has_tables_of_all_frames_of_parts_and_of_differences(text, params):
    captions = re.findall("<caption>(.*?)</caption>", text)
    assert captions[:4] == [
        "All parts of the videos together",
        "Good frames, part by part",
        "Difference to Self-Forcing, 95 % interval over videos",
        "Difference to Self-Forcing, 95 % interval over training seeds",
    ]
    assert f"cut into {params.score.segments} equal parts" in text
    table = re.search("<caption>Good frames, part by part</caption>(.*?)</table>", text, re.DOTALL)[1]
    assert re.findall('<th scope="col" title[^>]*>(Part .)', table) == [f"Part {part}" for part in range(1, 6)]
    rows = re.findall(r'<tr[^>]*><th scope="row".*?</tr>', table, re.DOTALL)
    faded = next(row for row in rows if "HiAR · init" in row)
    assert re.findall("<td[^>]*>([0-9.]+)<", faded)[0] == "1.000"  # its colours are right at first
    assert [' class="reference"' in row for row in rows] == [False] * 5 + [True] * 2


def test_the_page_describes_the_comparison_in_words_and_seconds(text, params):
    """Clips of 15 frames and rollouts of 30, at 12 frames per second; the teacher makes clips."""
    assert "trained on clips of 15 frames (1.25 s), rolled out for 30 (2.5 s)" in text
    assert "clips of 1.25 s; these rollouts go on for\n    2.5 s" in text
    assert "step-first, output context" in text
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text, re.DOTALL)
    assert [re.sub("<small>.*?</small>|<[^>]*>", "", one).strip() for one in legends[0].split("</li>")[:-1]] == MODELS[
        1:
    ]
    definitions = re.search('<dl class="definitions">(.*?)</dl>', text, re.DOTALL)[1]
    explained = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", definitions))
    assert {"Good frames", "Saturation drift", "Border jump"} < explained.keys()
    assert explained["Good frames"].startswith("Share of frames that show what the caption asks for")
    (course,) = (svg for svg in re.findall("<svg.*?</svg>", text, re.DOTALL) if 'aria-label="Good frames:' in svg)
    across = [
        [float(place.split(",")[0]) for place in line.split()]
        for line in re.findall('<polyline[^>]*points="(.*?)"', course)
    ]
    teacher, *students = across
    assert all(line == students[0] for line in students)
    assert [x - 46 for x in teacher] == pytest.approx([(x - 46) / 2 for x in students[0]], abs=0.11)


def test_each_training_has_its_own_curve(text):
    for name, lines in (("critic", 2), ("dmd", 1)):  # the critic's curves differ between seeds
        (chart,) = (svg for svg in re.findall("<svg.*?</svg>", text, re.DOTALL) if f"Distillation, {name}:" in svg)
        drawn = re.findall('<polyline[^>]*points="(.*?)"', chart)
        assert (len(drawn), len(set(drawn))) == (6, lines)


def test_a_commit_with_local_changes_is_marked():
    made = report._Made.model_validate({"code": {"commit": "0123456789abcdef", "dirty": True}})
    clean = report._Made.model_validate({"code": {"commit": "0123456789abcdef", "dirty": False}})
    assert report._commits([made]) == ["0123456789 + changes"]
    assert report._commits([clean, clean]) == ["0123456789"]


def test_parameters_times_and_curves_are_shown(text):
    assert "good_residual: 0.08" in text
    assert "1 min 23 s" in text
    assert "1.5 GB" in text
    assert "a machine" in text
    charts = [attributes["aria-label"] for attributes in Page(text).all("svg")]
    assert [label.split(":")[0] for label in charts] == [
        "Good frames",
        "Saturation shift",
        "Background shift",
        "Distillation, critic",
        "Distillation, dmd",
        "Validation, Speed",
    ]


def test_the_page_shows_motion_over_training_in_both_modes(text):
    section = re.search(r'<section id="validation".*?</section>', text, re.DOTALL)[0]
    assert section.count("<polyline") == 2
    (correlation,) = re.findall("<li>(HiAR without forward-KL: .*?)</li>", section)
    assert correlation == "HiAR without forward-KL: r = 0.957 [0.852, 0.988]; by seed 0.952, 0.961"


def test_the_report_shows_the_times_of_earlier_stages_but_not_its_own(workspace, params, text):
    assert '<th scope="row">score</th>' in text
    report.run(params, workspace)  # the first run left a log
    assert (workspace / "logs" / "report.json").exists()
    assert '<th scope="row">report</th>' not in (workspace / "reports" / "index.html").read_text()
    run = json.loads((workspace / "reports" / "run.json").read_text())
    assert "report" not in {stage["name"] for stage in run["stages"]}


def test_run_json_has_seeds_commits_and_stages(workspace, params):
    run = json.loads((workspace / "reports" / "run.json").read_text())
    assert run["seeds"] == params.seeds
    assert len(run["commits"]) == 1
    assert {"seed-0/distill/hiar", "score"} <= {stage["name"] for stage in run["stages"]}
    assert all(stage["hardware"] and stage["seconds"] >= 0 for stage in run["stages"])


def test_the_commits_are_those_of_all_seeds_samples(workspace, params, tmp_path):
    """A second seed may have been added when there were other commits."""
    shutil.copytree(workspace / "artifacts", tmp_path / "artifacts")
    (tmp_path / "metrics").symlink_to(workspace / "metrics")
    manifest = tmp_path / "artifacts" / "seed-1" / "samples" / "distill" / "hiar" / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"code": {"commit": "f" * 40, "dirty": False}}))
    report.run(params, tmp_path)
    before, after = (
        json.loads((folder / "reports" / "run.json").read_text())["commits"] for folder in (workspace, tmp_path)
    )
    assert after == sorted([*before, 10 * "f"])
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", (tmp_path / "reports" / "index.html").read_text()))
    assert facts["Commit"] == ", ".join(after)


def test_the_contact_sheet_has_one_row_per_model(workspace, params):
    sheet = np.asarray(Image.open(workspace / "reports" / "contact_sheet.png"))
    rows, foot = divmod(len(sheet) - HEAD, CELL + GAP)
    assert foot == FOOT
    tops = [HEAD + row * (CELL + GAP) for row in range(rows)]
    assert rows == len(MODELS) - 1  # the true world is not in it
    prompt = read_captions(workspace / "artifacts" / "seed-0" / "samples" / "teacher")[0]
    empty = torch.zeros(FRAMES, 8, 8, 3, dtype=torch.uint8)
    frame = contact_sheet(prompt, [("", empty)], report.SHEET_COLUMNS, params.world.frames_per_second)
    assert np.array_equal(sheet[:HEAD], frame[:HEAD])
    assert np.array_equal(sheet[-FOOT:], frame[-FOOT:])  # the times
    for top in tops:  # a frame, not a gap
        assert sheet[top : top + CELL, GAP + LABEL :][:, :CELL].std() > 10
    # The frames are those of the first prompt, which the sheet's head shows.
    frames = [true_clips(params, 0, 1)[0][video, 0].float().mean(dim=(0, 1)) for video in (0, 1)]
    shown = [sheet[top : top + CELL, GAP + LABEL :][:, :CELL].mean(axis=(0, 1)) for top in tops]
    own, other = ([abs(mean - frame.numpy()).max() for mean in shown] for frame in frames)
    assert max(own) < 5 < min(other)


def test_a_workspace_without_logs_and_curves_has_a_report_too(workspace, params, tmp_path):
    for name in ("artifacts", "metrics"):
        (tmp_path / name).symlink_to(workspace / name)
    report.run(params, tmp_path)
    text = (tmp_path / "reports" / "index.html").read_text()
    assert "its outputs came from a cache" in text
    assert "Training</h2>" not in text


def test_names_are_escaped(workspace, params, tmp_path):
    for name in ("artifacts", "metrics"):
        (tmp_path / name).symlink_to(workspace / name)
    log = tmp_path / "logs" / "codec.json"
    log.parent.mkdir()
    entry = json.loads(next((workspace / "logs").rglob("*.json")).read_text())
    log.write_text(json.dumps(entry | {"hardware": "<script>alert(1)</script>"}))
    report.run(params, tmp_path)
    assert "<script>alert(1)" not in (tmp_path / "reports" / "index.html").read_text()


def test_scores_of_another_experiment_are_refused(workspace, params, tmp_path):
    (tmp_path / "artifacts").symlink_to(workspace / "artifacts")
    (tmp_path / "metrics").mkdir()
    with pytest.raises(UserError, match=r"summary\.json: cannot be read; run `hiar stage score` first"):
        report.run(params, tmp_path)
    summary = json.loads((workspace / "metrics" / "summary.json").read_text())
    del summary["distill"]["hiar-no-fkl"]["seed-1"]
    (tmp_path / "metrics" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="holds no row of distill hiar-no-fkl, seed 1"):
        report.run(params, tmp_path)
    assert not (tmp_path / "reports").exists()


def test_scores_without_a_column_of_the_page_are_refused(workspace, params, tmp_path):
    (tmp_path / "artifacts").symlink_to(workspace / "artifacts")
    shutil.copytree(workspace / "metrics", tmp_path / "metrics")
    path = tmp_path / "metrics" / "summary.json"
    summary = json.loads(path.read_text())
    for name in ("hops", "dynamic"):
        del summary["init"]["hiar"]["seed-1"][name]
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"summary\.json: lacks hops, dynamic; run `hiar stage score` again"):
        report.run(params, tmp_path)
    shutil.copy(workspace / "metrics" / "summary.json", path)
    (tmp_path / "metrics" / "world.json").write_text('[{"seed": 0')  # truncated
    with pytest.raises(UserError, match=r"world\.json: cannot be read; run `hiar stage score` first"):
        report.run(params, tmp_path)


def test_metrics_without_values_per_video_are_compared_over_seeds(workspace, params, tmp_path):
    """VBench's Semantic has one value per seed: its row of differences comes from the two seeds' values."""
    names = [name for name, one in DIMENSIONS.items() if one.group == SEMANTIC]
    extended = params.model_copy(update={"score": params.score.model_copy(update={"vbench": names})})
    (tmp_path / "artifacts").symlink_to(workspace / "artifacts")
    shutil.copytree(workspace / "metrics", tmp_path / "metrics")
    rows = read_summary(params, workspace)
    for row in rows:
        better = 0.2 + 0.01 * row["seed"] if row["variant"] == "hiar" and row["stage"] == "distill" else 0.1
        row["metrics"] |= {f"vbench_{name}": {"mean": better, "se": None, "n": 3} for name in (*names, SEMANTIC)}
    (tmp_path / "metrics" / "summary.json").write_text(json.dumps(nested(rows)))
    report.run(extended, tmp_path)
    page = (tmp_path / "reports" / "index.html").read_text()
    assert page.count("VBench Semantic") >= 3  # all videos, differences over videos and over seeds
    assert "+0.105" in page  # of .1 and .11
    assert "vbench_total" not in page


def test_the_page_says_when_there_is_one_seed_or_one_student(workspace, params, tmp_path):
    """It also shows the curves of the stages that all students share."""
    for name in ("artifacts", "metrics"):
        (tmp_path / name).symlink_to(workspace / name)
    for stage in ("codec", "teacher", "init"):
        curve = tmp_path / "curves" / "seed-0" / f"{stage}.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        curve.write_text("step,loss\n" + "".join(f"{step},{1 / step}\n" for step in range(1, 9)))
    compare = params.compare.model_copy(update={"init": [], "distill": ["hiar"]})
    report.run(params.model_copy(update={"seeds": [0], "compare": compare}), tmp_path)
    text = (tmp_path / "reports" / "index.html").read_text()
    assert "There is one training seed: the errors do not say how far another one would land." in text
    assert "Pooled over" not in text
    assert "There is no second student to compare with." in text
    labels = [attributes["aria-label"].split(":")[0] for attributes in Page(text).all("svg")]
    assert {"Codec, loss", "Teacher, loss", "Init, loss"} <= {*labels}
    curves = tmp_path / "curves"
    shutil.copytree(curves / "seed-0", curves / "seed-1")
    compare = compare.model_copy(update={"distill": ["self-forcing", "hiar"]})
    report.run(params.model_copy(update={"compare": compare}), tmp_path)
    text = (tmp_path / "reports" / "index.html").read_text()
    assert "Difference to Self-Forcing, 95 % interval over videos" in text  # two models can be compared
    codec = re.search("<h3>Codec</h3>(.*?)</div>", text, re.DOTALL)[1]
    assert re.findall('<span class="key (.*?)"></span>(.*?) ?</li>', codec) == [("c0", "seed 0"), ("c1", "seed 1")]


def test_the_page_shows_profiles_walked_students_and_the_papers_table(tmp_path):
    """Drift, students walked at other levels, and the page with the paper's table."""
    level = {"order": "step_first", "context": "output", "forward_kl": None}
    walked = {f"c{share}": level | {"level": share / 100} for share in (50, 85)}
    tree = merge(
        small_params(seeds=[0]).model_dump(mode="json"),
        {
            "variants": walked,
            "compare": {
                "init": [],
                "distill": ["self-forcing", "hiar"],
                "walked": [{"student": "hiar", "walk": name} for name in walked],
            },
            "report": {"reference": None, "table": "table1", "videos": 1},
        },
    )
    plain = parse_params(tree, "plain.yaml")
    extended = parse_params(merge(tree, {"score": {"profiles": ["drift-lite"]}}), "mine.yaml")
    sampled_workspace(tmp_path, extended)
    score.run(plain, tmp_path)
    with pytest.raises(UserError, match="lacks drift_lite, drift_lite_floor; run `hiar stage score` again"):
        report.run(extended, tmp_path)
    score.run(extended, tmp_path)
    report.run(extended, tmp_path)
    text = (tmp_path / "reports" / "index.html").read_text()
    summary = {(row["stage"], row["variant"]): row["metrics"] for row in read_summary(extended, tmp_path)}
    row = re.search(r"HiAR · walked as c85</th>.*?</tr>", text, re.DOTALL)[0]
    assert f"<td>{summary['walked', 'hiar/c85']['drift_lite']['mean']:.3f}" in row.replace(' class="shaded"', "")
    heads = re.findall('<th scope="col" title[^>]*>([^<]*?) *<', text)
    assert {"Drift-lite", "Drift-lite, floor"} < {*heads}
    assert "output context at c = 0.85" in text
    section = re.search("<h3>By the level of the context</h3>.*?<details>", text, re.DOTALL)[0]
    assert re.findall('<span class="key c0"></span>(.*?)</li>', section) == ["hiar, walked at c"]
    assert section.count("<figure>") == 3
    assert len(re.findall("<circle", section)) == 3 * 3
    assert 'href="tables.html"' in text


def test_samples_of_other_prompts_are_refused(workspace, params, tmp_path):
    compare = params.compare.model_copy(update={"init": [], "distill": []})
    alone = params.model_copy(update={"compare": compare, "seeds": [0]})
    frames, captions = true_clips(params, seed=1, frames=params.video.frames)
    shutil.copytree(workspace / "artifacts" / "seed-0" / "codec", tmp_path / "artifacts" / "seed-0" / "codec")
    write_samples(tmp_path / "artifacts" / "seed-0" / "samples" / "teacher", frames, captions, params)
    with pytest.raises(UserError, match=r"samples/teacher: its prompts are not those of params\.yaml"):
        report.run(alone, tmp_path)
    # The second seed's too.
    (tmp_path / "both" / "artifacts").mkdir(parents=True)
    (tmp_path / "both" / "metrics").symlink_to(workspace / "metrics")
    (tmp_path / "both" / "artifacts" / "seed-0").symlink_to(workspace / "artifacts" / "seed-0")
    (tmp_path / "both" / "artifacts" / "seed-1").symlink_to(tmp_path / "both" / "artifacts" / "seed-0")
    with pytest.raises(UserError, match=r"seed-1/samples/teacher: its prompts are not those of params\.yaml"):
        report.run(params, tmp_path / "both")
