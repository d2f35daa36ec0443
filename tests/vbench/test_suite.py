import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiar.errors import UserError
from hiar.vbench.dimensions import DIMENSIONS, known_dimensions
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.suite import Entry, file_name, file_stem, parse_name, prompt_lines, read_suite, wanted

FLICKERING = "temporal_flickering"


@pytest.fixture
def suite(environment):
    return read_suite(environment.suite)


def test_a_prompt_with_two_entries_is_generated_once_for_both(suite):
    assert wanted(suite, DIMENSIONS) == {
        "In a still frame, a stop sign": 25,
        "a bench": 25,
        "the bund, oil painting": 5,
        "A person is riding a bike": 5,
    }
    assert wanted(suite, ["imaging_quality"]) == {"a bench": 5, "the bund, oil painting": 5}
    assert wanted(suite, ["scene"]) == {}


def test_a_prompt_gets_the_samples_of_its_most_demanding_dimension():
    entries = [Entry("a", (FLICKERING,), {}), Entry("a", ("scene",), {})]
    assert wanted(entries, DIMENSIONS) == wanted(entries[::-1], DIMENSIONS) == {"a": 25}
    assert wanted(entries, ["scene"]) == {"a": 5}
    assert known_dimensions(["scene", FLICKERING, "scene"]) == ["scene", FLICKERING]


def test_prompt_lines_are_one_per_video(suite):
    lines = list(prompt_lines(wanted(suite, ["human_action", "imaging_quality"])))
    assert lines == ["a bench"] * 5 + ["A person is riding a bike"] * 5 + ["the bund, oil painting"] * 5


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400), st.integers(0, 24))
def test_names_lead_back_to_prompt_and_sample(prompt, sample):
    name = file_name(prompt, sample)
    assert len(name.encode()) <= 255
    assert not set("/\0") & set(name)
    assert parse_name(name.removesuffix(".mp4"), {file_stem(prompt): prompt}) == (prompt, sample)


def test_long_prompts_that_begin_alike_have_names_of_their_own():
    one, other = "é" * 200 + "a", "é" * 200 + "b"
    assert file_name(one, 0) != file_name(other, 0)
    assert file_stem("short, as VBench writes it") == "short, as VBench writes it"
    longest = "a" * (255 - len("-123.mp4"))
    assert file_stem(longest) == longest != file_stem(longest + "a")
    assert len(file_name(longest + "a", 123)) == 255
    assert 252 < len(file_name("雪" * 100, 123).encode()) <= 255  # a limit of bytes, not of characters
    assert parse_name("a bench-123", {"a bench": "a bench"}) == ("a bench", 123)


@pytest.mark.parametrize("stem", ["a bench", "a bench-", "a bench-x", "a bench-0-1", "A bench-0", "a bench-0000"])
def test_other_names_are_no_prompts(stem):
    assert parse_name(stem, {"a bench": "a bench"}) is None


@pytest.mark.parametrize("content", ["{", "[]x", '[{"dimension": []}]', '{"a": 1}', "[1]"])
def test_a_broken_suite_is_refused(tmp_path, content):
    path = tmp_path / "VBench_full_info.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not VBench's prompt suite"):
        read_suite(path)


@pytest.mark.skipif(not (default_folder() / ".ready").exists(), reason="VBench's environment is not built: make vbench")
def test_the_installed_suite_has_the_published_counts():
    found = find_environment(default_folder()).suite
    suite = read_suite(found)
    assert len(suite) == len(json.loads(found.read_text())) == 946
    counts = wanted(suite, DIMENSIONS)
    assert len(counts) == 944
    assert (list(counts.values()).count(25), sum(counts.values())) == (75, 869 * 5 + 75 * 25)
    assert len({file_name(prompt, 0) for prompt in counts}) == 944
    assert {name for entry in suite for name in entry.dimensions} == set(DIMENSIONS)
    # described dimensions: those for which the suite gives more than the prompt
    assert {name for entry in suite for name in entry.auxiliary} == {
        name for name, one in DIMENSIONS.items() if one.described
    }
