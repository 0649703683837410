"""Frames of video files, evenly spaced, decoded with PyAV (the extra `video`)."""

import os
import stat
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sail_encoder.io.errors import ImageError, UserError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

FRAMES = 8
"""How many frames of a video are taken where nothing else is said."""

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def is_video(path: str) -> bool:
    """Tells whether a path is that of a video, by its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: Any, count: int = FRAMES) -> list[Image.Image]:
    """Reads the frames in the middle of so many parts of a video of equal length.

    Args:
        path: The file.
        count: How many frames to take; a shorter video gives all that it has.

    Returns:
        RGB images, in the order of time.

    Raises:
        ImageError: If it cannot be read.
        UserError: If the count is not positive, or PyAV is not installed.
    """
    if count < 1:
        raise UserError(f"frames cannot be {count}; allowed is 1 or more")
    name = os.fspath(path)
    try:
        import av
    except ImportError:
        raise UserError(f"{name}: videos need PyAV: pip install av") from None
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ImageError("no regular file", name)
        # A playlist must not make this machine read from the network.
        with av.open(name, options={"protocol_whitelist": "file"}) as container:
            frames = _decode(container, count)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file", name) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"not a video that PyAV can read ({' '.join(str(error).split())})", name) from None
    if not frames:
        raise ImageError("there are no pictures in it", name)
    return frames


def _decode(container: "InputContainer", count: int) -> list[Image.Image]:
    """Looks for the times of all frames first, then decodes from the key frame before each that is wanted."""
    if not container.streams.video:
        return []
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    times, key_frames = [], []
    for packet in container.demux(stream):
        shown, decoded = (packet.dts if packet.pts is None else packet.pts), packet.dts
        if packet.size and shown is not None:
            times.append(shown)
            if packet.is_keyframe:
                key_frames.append((shown, shown if decoded is None else min(shown, decoded)))
    times.sort()
    if len(times) > count:
        times = [times[int((part + 0.5) * len(times) / count)] for part in range(count)]
    frames = (_frame_at(container, stream, time, key_frames) for time in times)
    return [frame.to_image() for frame in frames if frame is not None]


def _frame_at(
    container: "InputContainer", stream: "VideoStream", time: int, key_frames: list[tuple[int, int]]
) -> "VideoFrame | None":
    """The first frame from a time on.

    Args:
        container: An open video.
        stream: Its pictures.
        time: When the frame is shown.
        key_frames: When each key frame is shown, and when it is decoded; some formats are searched by the latter.
    """
    before = max(((shown, decoded) for shown, decoded in key_frames if shown <= time), default=(0, 0))[1]
    for start, is_last in ((before, False), (stream.start_time or 0, True)):
        container.seek(start, stream=stream)
        frames = ((frame.pts, frame) for frame in container.decode(stream) if frame.pts is not None)
        first = next(frames, None)
        # Where the first frame is too late already, the search has gone too far, and the second goes through all.
        if first is not None and (first[0] <= time or is_last):
            return next((frame for shown, frame in chain([first], frames) if shown >= time), None)
    return None
