"""Bytes → arrays, by extension, from an allow-list, with limits checked before anything large is allocated."""

from __future__ import annotations

import ast
import io
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from data_tools.errors import UserError

Sample = dict[str, Any]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "tif", "tiff", "gif"})
AUDIO_EXTENSIONS = frozenset({"flac", "wav", "ogg", "mp3"})
VIDEO_EXTENSIONS = frozenset({"mp4", "mkv", "webm", "avi", "mov"})
# Formats whose readers run code from the file. Refused wherever they turn up, never merely skipped.
PICKLE_EXTENSIONS = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib"})
_OTHER = {"txt": "text", "text": "text", "cls": "label", "json": "json", "npy": "array"}


class DecodeError(ValueError):
    """The bytes are damaged, or beyond a limit."""


@dataclass(frozen=True)
class DecodeOptions:
    """Limits and choices; ``min_side`` lets JPEG be shrunk by 2, 4 or 8 while
    decoding, its shorter side staying ≥ min_side."""

    max_pixels: int = 64_000_000  # pixels × frames: 8000² images
    max_video_values: int = 1 << 31  # frames × height × width × channels
    max_audio_seconds: float = 3600.0
    max_text_bytes: int = 256 << 20
    min_side: int | None = None
    sampling_rate: int | None = None  # resample audio to this rate with soxr
    raw: bool = False  # members stay as they are, memoryviews under their full extension


def kind_of(extension: str) -> str | None:
    """The field that a member of this (possibly dotted) extension becomes; None stays bytes."""
    if extension == "tokens.npy":
        return "tokens"
    last = extension.rsplit(".", 1)[-1]
    if last in PICKLE_EXTENSIONS:
        raise UserError(
            f".{extension} member: pickle can run code and is refused; repack the data without it"
        )
    if last in IMAGE_EXTENSIONS:
        return "image"
    if last in AUDIO_EXTENSIONS:
        return "audio"
    if last in VIDEO_EXTENSIONS:
        return "video"
    return _OTHER.get(last)


@lru_cache(maxsize=4096)
def field_names(extensions: tuple[str, ...]) -> dict[str, str]:
    """Extension → field name: the kind, or the full extension where two members are of one kind."""
    kinds = {extension: kind_of(extension) for extension in extensions}
    often = Counter(kinds.values())
    return {e: e if kind is None or often[kind] > 1 else kind for e, kind in kinds.items()}


def decode_sample(key: str, members: Mapping[str, memoryview], options: DecodeOptions) -> Sample:
    """Decode every member; raises DecodeError naming the member and what is wrong with it."""
    if options.raw:
        return {"__key__": key, **members}
    sample: Sample = {"__key__": key}
    names = field_names(tuple(members))
    for extension, payload in members.items():
        kind = kind_of(extension)
        try:
            value = bytes(payload) if kind is None else _DECODERS[kind](payload, extension, options)
        except (
            UserError,
            MemoryError,
        ):  # limits come first: memory that is lacking is the machine's, no damage
            raise
        except DecodeError as error:
            raise DecodeError(f".{extension}: {error}") from None
        except Exception as error:  # whatever a decoder makes of hostile bytes, it is this sample that is bad
            raise DecodeError(f".{extension}: {type(error).__name__}: {error}") from None
        if kind == "audio":
            value, sample["sampling_rate"] = value
        sample[names[extension]] = value
    return sample


def _image(payload: memoryview, _: str, options: DecodeOptions) -> np.ndarray:
    """uint8 or uint16 (H, W, C); told by its first bytes, as the extension is often wrong."""
    return _jpeg(payload, options) if payload[:2] == b"\xff\xd8" else _pillow(payload, options)


_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")


def _pillow(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    """uint8 or uint16 (H, W, C) of any image format on the list."""
    from PIL import Image

    with Image.open(io.BytesIO(payload), formats=_PILLOW_FORMATS) as image:
        _check_pixels(image.width, image.height, options)
        if options.min_side and image.format == "JPEG":
            scale = min(image.width, image.height) / options.min_side
            image.draft(None, (int(image.width / scale), int(image.height / scale)))
        if _bit_depth(payload) == 16 and not image.mode.startswith("I"):
            raise DecodeError("16-bit colour PNG would lose its low bits; store such images as .npy")
        mode = image.mode
        if mode in ("P", "PA"):
            mode = "RGBA" if "transparency" in image.info or mode == "PA" else "RGB"
        elif mode == "1":
            mode = "L"
        elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            mode = "RGB"
        array = np.asarray(image if mode == image.mode else image.convert(mode))
    if array.dtype == np.int32:  # Pillow's mode I; the format held 16 bits
        array = array.astype(np.uint16)
    if array.dtype.byteorder == ">":
        array = array.astype(np.uint16)
    return array if array.ndim == 3 else array[:, :, None]  # (H, W, C)


def _bit_depth(payload: memoryview) -> int:
    """Bit depth of a PNG that has colour (2) or alpha (4, 6); 0 for anything else."""
    is_png = payload[:8] == b"\x89PNG\r\n\x1a\n" and len(payload) > 25
    return payload[24] if is_png and payload[25] in (2, 4, 6) else 0


def _check_pixels(width: int, height: int, options: DecodeOptions) -> None:
    if width * height > options.max_pixels:
        raise DecodeError(f"{width}×{height} pixels are beyond the limit of {options.max_pixels}")


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _jpeg(payload: memoryview, options: DecodeOptions) -> np.ndarray:
    fast = _simplejpeg()
    if fast is None:
        return _pillow(payload, options)
    height, width, colorspace, _ = fast.decode_jpeg_header(payload)
    _check_pixels(width, height, options)
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return _pillow(payload, options)
    # Shrunk by 8, 4 or 2 only: libjpeg-turbo's other scales (n/8) are not vectorised and slower than none at all.
    factor = next(
        (f for f in (8, 4, 2) if options.min_side and min(height, width) >= f * options.min_side), 1
    )
    scaled = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    array = fast.decode_jpeg(payload, colorspace="GRAY" if colorspace == "Gray" else "RGB", **scaled)
    return array if array.ndim == 3 else array[:, :, None]


def _text(payload: memoryview, _: str, options: DecodeOptions) -> str:
    _check_text(payload, options)
    return str(payload, "utf-8")


def _json(payload: memoryview, _: str, options: DecodeOptions) -> Any:
    _check_text(payload, options)
    return json.loads(bytes(payload))


def _check_text(payload: memoryview, options: DecodeOptions) -> None:
    if len(payload) > options.max_text_bytes:
        raise DecodeError(f"{len(payload)} bytes of text are beyond the limit of {options.max_text_bytes}")


def _label(payload: memoryview, *_: object) -> int:
    return int(bytes(payload[:32]))


def _npy(payload: memoryview, *_: object) -> np.ndarray:
    """A .npy array, read by hand so that no pickled object can hide in it; the data are not copied."""
    if bytes(payload[:6]) != b"\x93NUMPY" or len(payload) < 12:
        raise DecodeError("not a .npy file")
    start, width = (10, "<H") if payload[6] == 1 else (12, "<I")
    (length,) = struct.unpack_from(width, payload, 8)
    if length > 65536:
        raise DecodeError(f".npy header of {length} bytes refused")
    dtype, shape, order = _npy_header(bytes(payload[start : start + length]))
    count = math.prod(shape)
    if count * dtype.itemsize != len(payload) - start - length:
        raise DecodeError(f"shape {shape} does not fit {len(payload) - start - length} bytes")
    array = np.frombuffer(payload, dtype, count, start + length)
    return array.reshape(shape, order=order)


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"]]:
    fields = ast.literal_eval(header.decode("latin1"))
    dtype = np.dtype(fields["descr"])
    if dtype.hasobject:
        raise DecodeError(".npy of Python objects (pickle) refused")
    return dtype, tuple(int(side) for side in fields["shape"]), "F" if fields["fortran_order"] else "C"


def _tokens(payload: memoryview, *_: object) -> np.ndarray:
    array = _npy(payload)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DecodeError(f"tokens must be a 1-D integer array, not {array.ndim}-D {array.dtype}")
    return array


def _audio(payload: memoryview, _: str, options: DecodeOptions) -> tuple[np.ndarray, int]:
    """float32 (T, channels) and the sampling rate."""
    soundfile = _extra("soundfile", "audio")
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        rate = file.samplerate
        if file.frames > options.max_audio_seconds * rate:
            raise DecodeError(
                f"{file.frames / rate:.0f} s of audio are beyond {options.max_audio_seconds:.0f} s"
            )
        audio = file.read(dtype="float32", always_2d=True)
    if options.sampling_rate and options.sampling_rate != rate:
        audio, rate = (
            _extra("soxr", "audio").resample(audio, rate, options.sampling_rate),
            options.sampling_rate,
        )
    return audio, rate


def _video(payload: memoryview, _: str, options: DecodeOptions) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    av = _extra("av", "video")
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
        _check_pixels(stream.width, stream.height, options)
        for frame in container.decode(stream):
            if (len(frames) + 1) * frame.width * frame.height * 3 > options.max_video_values:
                raise DecodeError(
                    f"more than {len(frames)} frames of {frame.width}×{frame.height}: beyond the limit"
                )
            frames.append(frame.to_ndarray(format="rgb24"))
    if not frames:
        raise DecodeError("no frames")
    return np.stack(frames)


def _extra(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"{module} is not installed: `pip install masquerade[{extra}]`") from None


_DECODERS: dict[str, Callable[[memoryview, str, DecodeOptions], Any]] = {
    "image": _image,
    "text": _text,
    "json": _json,
    "label": _label,
    "array": _npy,
    "tokens": _tokens,
    "audio": _audio,
    "video": _video,
}
