"""Films → arrays (T, H, W, 3)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from data_tools.decode.options import DecodeError, DecodeOptions, check_pixels, import_extra


def decode_video(payload: memoryview, _: str, options: DecodeOptions) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    av = import_extra("av", "video")
    try:
        return _frames(av, payload, options)
    except av.error.MemoryError as error:  # what FFmpeg says of sizes that a damaged header holds
        raise DecodeError(str(error)) from None


def _frames(av: Any, payload: memoryview, options: DecodeOptions) -> np.ndarray:
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(payload)) as container:
        if not container.streams.video:
            raise DecodeError("no video stream")
        stream = container.streams.video[0]
        check_pixels(stream.width, stream.height, options)
        for frame in container.decode(stream):
            if (len(frames) + 1) * frame.width * frame.height * 3 > options.max_video_values:
                raise DecodeError(
                    f"more than {len(frames)} frames of {frame.width}×{frame.height}: beyond the limit"
                )
            frames.append(frame.to_ndarray(format="rgb24"))
    if not frames:
        raise DecodeError("no frames")
    return np.stack(frames)
