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
        if file.frames > options.max_audio_seconds * rate:
            raise DecodeError(
                f"{file.frames / rate:.0f} s of audio are beyond {options.max_audio_seconds:.0f} s"
            )
        audio = file.read(dtype="float32", always_2d=True)
    if options.sampling_rate and options.sampling_rate != rate:
        audio, rate = (
            import_extra("soxr", "audio").resample(audio, rate, options.sampling_rate),
            options.sampling_rate,
        )
    return audio, rate
