"""Streams: blocks are playable as soon as they are added, whatever happens next."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.video import open_stream, read_mp4

HEIGHT, WIDTH, FPS = 48, 64, 12
BLOCK = 3


def blocks(count: int) -> list[Tensor]:
    """Blocks of a bright bar moving over a dark ground, each uint8 (BLOCK, HEIGHT, WIDTH, 3)."""
    frames = torch.full((count * BLOCK, HEIGHT, WIDTH, 3), 30, dtype=torch.uint8)
    for number, frame in enumerate(frames):
        frame[:, 2 * number % WIDTH :][:, :8] = torch.tensor([220, 60, 90], dtype=torch.uint8)
    return list(frames.split(BLOCK))


def times(data: bytes) -> list[float]:
    """The seconds at which the frames of a video are shown."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.time for frame in container.decode(video=0)]


def boxes(data: bytes) -> list[tuple[bytes, int]]:
    """Kind and end offset of an mp4's boxes."""
    found, end = [], 0
    while end < len(data):
        size, kind = struct.unpack_from(">I4s", data, end)
        end += size
        found.append((kind, end))
    return found


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A stream of four blocks."""
    path = tmp_path_factory.mktemp("stream") / "v.mp4"
    with open_stream(path, HEIGHT, WIDTH, FPS) as add:
        for block in blocks(4):
            add(block)
    return path.read_bytes()


def test_everything_added_so_far_plays(tmp_path: Path) -> None:
    path, copy = tmp_path / "new" / "v.mp4", tmp_path / "copy.mp4"
    added = blocks(5)
    with open_stream(path, HEIGHT, WIDTH, FPS) as add:
        for count, block in enumerate(added, start=1):
            add(block)
            copy.write_bytes(path.read_bytes())
            frames = read_mp4(copy)
            assert frames.shape == (count * BLOCK, HEIGHT, WIDTH, 3)
            assert (frames.float() - torch.cat(added[:count]).float()).square().mean() < 4  # 42 dB
            assert times(copy.read_bytes()) == pytest.approx([number / FPS for number in range(count * BLOCK)])
    assert path.read_bytes() == copy.read_bytes()  # no index of fragments at the end, which would grow in memory
    assert [entry.name for entry in path.parent.iterdir()] == ["v.mp4"]


def test_each_block_is_one_fragment(stream: bytes) -> None:
    assert [kind for kind, _ in boxes(stream)] == [b"ftyp", b"moov", *[b"moof", b"mdat"] * 4]


def test_a_stream_that_was_cut_plays_to_its_last_whole_fragment(stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(stream)
    whole = read_mp4(tmp_path / "v.mp4")
    ends = [end for kind, end in boxes(stream) if kind == b"mdat"]
    for length in range(ends[0], len(stream), 199):
        (tmp_path / "cut.mp4").write_bytes(stream[:length])
        frames = read_mp4(tmp_path / "cut.mp4")
        assert len(frames) >= BLOCK * sum(end <= length for end in ends)
        assert torch.equal(frames, whole[: len(frames)])


def test_a_pipe_gets_each_block_as_it_is_added(stream: bytes) -> None:
    reader, writer = os.pipe()
    received = b""
    with open(reader, "rb", buffering=0) as inlet, open(writer, "wb") as outlet:  # buffered, so blocks must be flushed
        with open_stream(outlet, HEIGHT, WIDTH, FPS) as add:
            for count, block in enumerate(blocks(4), start=1):
                add(block)
                received += inlet.read(2**20)
                assert len(times(received)) == count * BLOCK
        assert not outlet.closed
    assert received == stream


def test_an_output_with_partial_writes_gets_the_whole_stream(stream: bytes) -> None:
    class Narrow(io.RawIOBase):
        def __init__(self) -> None:
            self.received = b""

        def writable(self) -> bool:
            return True

        def write(self, data: memoryview) -> int:
            self.received += bytes(data[:100])
            return min(len(data), 100)

    output = Narrow()
    with open_stream(output, HEIGHT, WIDTH, FPS) as add:
        for block in blocks(4):
            add(block)
    assert output.received == stream


def test_a_file_is_replaced_only_once_there_are_frames(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_text("of before")
    with open_stream(path, HEIGHT, WIDTH, FPS) as add:
        assert path.read_text() == "of before"
        add(blocks(1)[0])
        assert len(read_mp4(path)) == BLOCK
    with pytest.raises(ZeroDivisionError), open_stream(path, HEIGHT, WIDTH, FPS):
        raise ZeroDivisionError
    assert len(read_mp4(path)) == BLOCK


def test_a_named_pipe_is_written_to_not_replaced(stream: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    with open_stream(path, HEIGHT, WIDTH, FPS) as add:
        for block in blocks(4):
            add(block)
    reader.join()
    assert received == [stream]
    assert path.is_fifo()


def test_a_reader_that_has_gone_is_reported() -> None:
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as outlet, open_stream(outlet, HEIGHT, WIDTH, FPS) as add:
        first, second = blocks(2)
        add(first)
        os.close(reader)
        with pytest.raises(UserError, match="output: broken pipe; its reader has exited; start both again") as raised:
            add(second)
    assert isinstance(raised.value.__cause__, BrokenPipeError)


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody")
    for path, error in ((tmp_path, errno.EISDIR), (tmp_path / "file" / "v.mp4", errno.EEXIST)):
        with open_stream(path, HEIGHT, WIDTH, FPS) as add, pytest.raises(UserError, match=os.strerror(error).lower()):
            add(blocks(1)[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_blocks_written_before_the_disk_was_full_can_be_played(small_disk: Path) -> None:
    path = small_disk / "v.mp4"
    noise = torch.randint(0, 256, (BLOCK, 128, 128, 3), dtype=torch.uint8)
    added = 0
    with open_stream(path, 128, 128, FPS) as add, pytest.raises(UserError, match=r"v\.mp4: no space left on device"):
        while True:
            add(noise)
            added += BLOCK
    assert added > 0
    assert len(read_mp4(path)) >= added
