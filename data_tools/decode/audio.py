"""Audio files → arrays (T, channels)."""

from __future__ import annotations

import io

import numpy as np

from data_tools.decode.options import DecodeError, DecodeOptions, import_extra


def decode_audio(payload: memoryview, _: str, options: DecodeOptions) -> tuple[np.ndarray, int]:
    """float32 (T, channels) and the sampling rate."""
    soundfile = import_extra("soundfile", "audio")
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        rate = file.samplerate
        wanted = options.sampling_rate or rate
        values = file.frames * file.channels * max(1, wanted / rate)
        if values > options.max_audio_values:
            raise DecodeError(
                f"{file.frames:,} frames of {file.channels} channels at {rate:,} Hz are beyond the limit of "
                f"{options.max_audio_values:,} values"
            )
        audio = file.read(dtype="float32", always_2d=True)
    if wanted != rate:
        audio = import_extra("soxr", "audio").resample(audio, rate, wanted)
    return audio, wanted
