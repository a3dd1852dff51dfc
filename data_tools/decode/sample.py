"""The members of a sample → its fields, each by the decoder of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_tools.decode.arrays import decode_npy, decode_tokens
from data_tools.decode.audio import decode_audio
from data_tools.decode.image import decode_image
from data_tools.decode.kinds import field_names, kind_of
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.text import decode_json, decode_label, decode_text
from data_tools.decode.video import decode_video
from data_tools.errors import UserError

Sample = dict[str, Any]


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
        except (UserError, MemoryError):  # memory that is lacking is no damage: limits come first
            raise
        except DecodeError as error:
            raise DecodeError(f".{extension}: {error}") from None
        except Exception as error:  # whatever a decoder makes of hostile bytes, it is this sample that is bad
            raise DecodeError(f".{extension}: {type(error).__name__}: {error}") from None
        if kind == "audio":
            value, sample["sampling_rate"] = value
        sample[names[extension]] = value
    return sample


_DECODERS: dict[str, Callable[[memoryview, str, DecodeOptions], Any]] = {
    "image": decode_image,
    "text": decode_text,
    "json": decode_json,
    "label": decode_label,
    "array": decode_npy,
    "tokens": decode_tokens,
    "audio": decode_audio,
    "video": decode_video,
}
