"""Frames of videos: which are taken, and what is refused."""

import os
from fractions import Fraction

import numpy as np
import pytest
from helpers import noise

from sail_encoder import ImageError, UserError, load_chat
from sail_encoder.images.video import read_frames

av = pytest.importorskip("av", reason="needs PyAV")


@pytest.fixture
def write_video(tmp_path):
    """Writes frames whose brightness tells their number, with few key frames and some that are shown out of order."""

    def write(name, frames, codec="mpeg4", **options):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                picture = np.full((48, 64, 3), 10 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return tmp_path / name

    return write


def numbers(frames):
    return [round(np.asarray(frame).mean() / 10) for frame in frames]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg4")])
@pytest.mark.parametrize("options", [{"g": "12"}, {"g": "12", "bf": "2"}])
def test_frames_are_those_in_the_middle_of_equal_parts(write_video, name, codec, options):
    path = write_video(name, 20, codec, **options)
    with av.open(str(path)) as container:
        every = [frame.to_image() for frame in container.decode(video=0)]
    frames = read_frames(path, 4)
    assert frames == [every[number] for number in (2, 7, 12, 17)]
    assert len({round(np.asarray(frame).mean()) for frame in frames}) == 4
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (64, 48))}


def test_a_short_video_gives_all_that_it_has(write_video):
    assert numbers(read_frames(write_video("a.mp4", 3), 8)) == [0, 1, 2]


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, reason in (
        ("text.mp4", "not a video that PyAV can read"),
        ("list.mp4", "not a video that PyAV can read|there are no pictures in it"),
        ("empty.mp4", "not a video that PyAV can read"),
        ("pipe.mp4", "no regular file"),
        ("nowhere.mp4", "no such file"),
    ):
        with pytest.raises(ImageError, match=rf"{name}: ({reason})"):
            read_frames(tmp_path / name)
    with pytest.raises(UserError, match="frames cannot be 0; allowed is 1 or more"):
        read_frames(tmp_path / "text.mp4", 0)


def test_a_sail_vl_watches_a_video(write_video):
    from sail_vl_golden import golden_set

    from sail_encoder import Sampling

    chat = load_chat(str(golden_set("sail_vl2").checkpoint), dtype="float32")
    path, short = write_video("a.mp4", 20), Sampling(max_new_tokens=6)
    fork = chat.fork()
    fork.watch(read_frames(path, 4))
    chat.watch(path, 4)
    assert chat.ask("What happens?", sampling=short) == fork.ask("What happens?", sampling=short)
    assert chat.messages[0]["content"].startswith("Frame-1: <image>\nFrame-2: <image>\n")
    per_tile = chat.processor.image_seq_length
    assert [prefix.tokens for prefix in chat.conversation.prefixes] == [per_tile + 2] * 4
    chat.reset()
    chat.ask("What is it?", noise(40, 40), short)
    with pytest.raises(ImageError, match="no such file"):
        chat.watch("nowhere.mp4")
