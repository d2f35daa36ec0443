"""Which models an experiment compares, and with which."""

from pathlib import Path

import pytest
import torch
from sampled import ROOT

from hiar.errors import UserError
from hiar.io.reading import Head
from hiar.io.video import write_mp4
from hiar.parameters import merge, parse_params, read_yaml
from hiar.stages.comparison import check_heads, contenders, read_videos
from hiar.stages.definition import settings_of

WALKED = {"student": "self-forcing", "walk": "hiar"}


def params(**changes):
    return parse_params(merge(read_yaml(ROOT / "params.yaml"), changes), "mine.yaml")


def test_a_walked_student_is_a_contender_with_the_walk_of_the_other_variant():
    found = [one for one in contenders(params(compare={"init": [], "walked": [WALKED]})) if one.stage == "walked"]
    (one,) = found
    assert (one.variant, one.order, one.context) == ("self-forcing/hiar", "step_first", "output")
    assert str(one.samples(ROOT)).endswith("artifacts/seed-0/samples/walked/self-forcing/hiar")


def test_the_samples_of_a_walked_student_depend_on_the_walk():
    one, other = (
        settings_of("sample-walked", params(variants={"hiar": {"level": level}}), "self-forcing/hiar")
        for level in (1.0, 0.5)
    )
    assert one.keys() == other.keys() >= {"variants.hiar", "sample"}
    assert {name for name in one if one[name] != other[name]} == {"variants.hiar"}


@pytest.mark.parametrize(
    ("compare", "asked", "reference"),
    [
        ({}, None, "distill/self-forcing"),
        ({}, "distill/hiar", "distill/hiar"),
        ({}, "init/hiar", "init/hiar"),
        ({"distill": []}, None, "init/self-forcing"),
        ({"walked": [WALKED]}, "walked/self-forcing/hiar", "walked/self-forcing/hiar"),
        ({"init": [], "distill": []}, None, None),
    ],
)
def test_the_reference_is_the_named_model_or_the_first_distilled_one(compare, asked, reference):
    assert params(compare=compare, report={"reference": asked}).reference == reference


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"report": {"reference": "hiar"}},
            "report.reference = 'hiar': is not compared; did you mean 'init/hiar'?",
        ),
        ({"report": {"reference": "distill/shared"}}, "report.reference = 'distill/shared': is not compared;"),
        (
            {"compare": {"walked": [{"student": "shared", "walk": "hiar"}]}},
            "compare.walked = 'shared/hiar': no such distilled student; known: self-forcing, hiar-no-fkl",
        ),
        (
            {"compare": {"walked": [{"student": "hiar", "walk": "hiar"}]}},
            "compare.walked = 'hiar/hiar': no such distilled student;",
        ),
        (
            {"compare": {"walked": [{"student": "hiar", "walk": "shred"}]}},
            "compare.walked = 'hiar/shred': no such variant; did you mean 'shared'?",
        ),
        ({"compare": {"walked": [WALKED, WALKED]}}, "compare.walked = "),
    ],
)
def test_invalid_comparisons_are_refused(changes, line):
    with pytest.raises(UserError) as caught:
        params(**changes)
    assert str(caught.value).startswith(f"mine.yaml: {line}")


def test_headers_of_videos_must_match_the_world_and_each_other(tmp_path):
    def frames(*heads, least=30):
        return check_heads(tmp_path, dict(zip(map(Path, ("0.mp4", "1.mp4")), heads, strict=True)), (48, 64), least)

    head, unknown = Head(64, 48, 30, 12.0), Head(64, 48, None, None)
    assert (frames(head, head), frames(head, unknown), frames(unknown, head)) == (30, 30, None)
    with pytest.raises(UserError, match="videos have 30 frames, scoring needs 31; make longer ones"):
        frames(head, head, least=31)
    with pytest.raises(UserError, match=r"videos are 48x64 pixels, the world 64x48; use the params\.yaml"):
        frames(Head(48, 64, 30, 12.0), head)
    for other in (Head(64, 47, 30, 12.0), Head(63, 48, 30, 12.0), Head(64, 48, 29, 12.0), Head(64, 48, 31, 12.0)):
        line = rf"1\.mp4: is {other.frames} frames of {other.width}x{other.height}, 0\.mp4 30 frames of 64x48; use"
        with pytest.raises(UserError, match=line):
            frames(head, other)


@pytest.mark.parametrize("lengths", [(4, 4, 3), (4, 4, 5)])
def test_a_length_that_differs_only_when_decoded_is_named(lengths, tmp_path):
    """Such as a video whose header does not give its length."""
    paths = [tmp_path / f"{number}.mp4" for number in range(len(lengths))]
    for path, length in zip(paths, lengths, strict=True):
        write_mp4(path, torch.zeros(length, 16, 16, 3, dtype=torch.uint8), 12)
    with pytest.raises(UserError, match=rf"2\.mp4: is {lengths[2]} frames, 0\.mp4 4; use one length"):
        for parts in read_videos(paths):
            assert sum(len(part) for part in parts) in lengths
