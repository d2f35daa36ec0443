"""The prompt and the length of each video in a folder."""

import json

import pytest
import torch
from vbench_toys import SUITE, film

from hiar.errors import UserError
from hiar.io.video import fragments
from hiar.vbench.pieces import chosen_videos
from hiar.vbench.suite import Entry
from hiar.vbench.videos import is_standard, protocol_of, read_videos

ENTRIES = [Entry(one["prompt_en"], tuple(one["dimension"]), one.get("auxiliary_info", {})) for one in SUITE]


def folder_of(tmp_path, *names, frames=4):
    for number, name in enumerate(names):
        film(tmp_path / "videos" / name, frames, number)
    return tmp_path / "videos"


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_captions_are_one_line_per_video_in_numeric_order(tmp_path, start):
    folder = folder_of(tmp_path, "10.mp4", "9.mp4", "2.mp4")
    (folder / "captions.txt").write_text(f"{start}a bird\n\na  bee\r\na bear\n", encoding="utf-8")
    found = read_videos(folder, [])
    assert [(one.path.name, one.prompt) for one in found] == [
        ("2.mp4", "a bird"),
        ("9.mp4", "a bee"),
        ("10.mp4", "a bear"),
    ]


def test_a_file_of_prompts_takes_precedence_over_captions(tmp_path):
    folder = folder_of(tmp_path, "0.mp4")
    (folder / "captions.txt").write_text("a bird\n")
    (tmp_path / "prompts.json").write_text("\ufeff" + json.dumps({"0.mp4": " a  bee "}), encoding="utf-8")
    [found] = read_videos(folder, [], tmp_path / "prompts.json")
    assert found.prompt == "a bee"


def test_videos_of_one_prompt_are_its_samples_and_five_are_chosen(tmp_path, capsys):
    folder = folder_of(tmp_path, *(f"{number}.mp4" for number in range(7)))
    (folder / "captions.txt").write_text("a bench\n" * 7)
    videos = read_videos(folder, ENTRIES)
    assert [one.sample for one in videos] == list(range(7))
    assert is_standard(videos, ENTRIES)
    assert [video.path.name for video, _ in chosen_videos("imaging_quality", videos, ENTRIES)] == [
        f"{number}.mp4" for number in range(5)
    ]
    assert not is_standard(videos, ENTRIES[:1])
    assert capsys.readouterr().err == ""  # only a mixed folder is reported
    named = folder_of(tmp_path / "named", *(f"a bench-{sample}.mp4" for sample in (4, 5, 10, 0)))
    chosen = chosen_videos("imaging_quality", read_videos(named, ENTRIES), ENTRIES)
    assert [video.sample for video, _ in chosen] == [0, 4]


def test_finder_files_are_ignored_and_names_that_vbench_does_not_read_refused(tmp_path):
    folder = folder_of(tmp_path, "0.mp4")
    (folder / "captions.txt").write_text("a bird\n")
    (folder / "._0.mp4").write_bytes(b"of the Finder")
    (folder / "folder.mp4").mkdir()
    assert [one.path.name for one in read_videos(folder, [])] == ["0.mp4"]
    (folder / "0.mp4").rename(folder / "0.MP4")
    with pytest.raises(UserError, match=r"0\.MP4: VBench reads only names that end in \.mp4"):
        read_videos(folder, [])


def test_the_length_of_a_video_without_one_in_its_header(tmp_path):
    """As written by `hiar stream`, whose header precedes all frames."""
    header, fragment_of = fragments(32, 48, 4)
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = torch.randint(0, 256, (20, 32, 48, 3), dtype=torch.uint8)
    (folder / "0.mp4").write_bytes(header + b"".join(fragment_of(part) for part in frames.split(3)))
    (folder / "captions.txt").write_text("a bird\n")
    [found] = read_videos(folder, [])
    assert (found.frames, found.fps, found.seconds) == (20, 4, 5)
    assert protocol_of([found]) == "vbench-long"
    assert protocol_of([found._replace(frames=19)]) == "vbench"
