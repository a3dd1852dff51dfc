"""Whatever happens to a tar's bytes, the scan ends, says so, and reads every sample that was not hit."""

import io
import tarfile
from contextlib import suppress
from functools import cache
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_tools.formats import tar
from data_tools.formats.scan import scan_shard

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
SAMPLES = 6


@cache
def small_tar(form, folder):
    """(bytes, {key: (start, end, {extension: payload})}) of a tar, some payloads of no block, one, or two."""
    buffer, samples = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=FORMS[form]) as archive:
        for number in range(SAMPLES):
            key, start = f"{folder}{number:04d}", archive.offset
            payloads = {"bin": bytes([number + 1]) * (300 * number), "txt": b"text %d" % number}
            for extension, payload in payloads.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
            samples[key] = (start, archive.offset, payloads)
    return buffer.getvalue(), samples


def hits_long_name(data, start, end):
    """Whether bytes [start, end) touch the payload of a long name or pax header, for which tar has no checksum."""
    blocks = range(0, len(data), 512)
    payloads = [
        at + 512 for at in blocks if data[at + 257 : at + 262] == b"ustar" and data[at + 156] in b"Lx"
    ]
    return any(start < at + 512 and at < end for at in payloads)


def read_sound(data):
    """({key: members} of the valid rows, whether anything was reported)."""
    found = scan_shard(lambda offset, size: data[offset : offset + size], len(data))
    sound = {}
    for start, size, valid in zip(found.sidecar.offset, found.sidecar.size, found.sidecar.valid, strict=True):
        if valid:
            key, members = tar.sample_members(data[int(start) : int(start + size)])
            sound[key] = {extension: bytes(payload) for extension, payload in members.items()}
    return sound, bool(found.bad or found.faults)


def check(data, samples, start, end):
    """Every sample outside of the damaged bytes [start, end) is read; those hit are whole, or reported."""
    try:
        sound, reported = read_sound(data)
    except tar.TarError:
        assert all(first < end and start < last for first, last, _ in samples.values())
        return
    for key, (first, last, members) in samples.items():
        if last <= start or first >= end:
            assert sound.pop(key) == members
        elif key not in sound:
            assert reported
    for key, members in sound.items():  # what was hit and is still taken for sound has all its members
        assert set(members) == {"bin", "txt"}, key


LONG = "a-folder-of-more-than-a-hundred-characters/" * 4
shapes = st.tuples(st.sampled_from(sorted(FORMS)), st.sampled_from(["", "d.1/", LONG])).filter(
    lambda shape: shape != ("ustar", LONG)
)
place = st.floats(0, 1, exclude_max=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes, place, st.integers(1, 255))
def test_one_byte_changed_costs_at_most_its_sample(shape, at, change):
    data, samples = small_tar(*shape)
    end = max(last for _, last, _ in samples.values())
    at = int(at * end)
    assume(not hits_long_name(data, at, at + 1))
    changed = bytearray(data)
    changed[at] ^= change
    check(bytes(changed), samples, at, at + 1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shapes,
    place,
    st.sampled_from([8, 512, 700, 4096]),
    st.sampled_from(["noise", "zeros"]),
    st.integers(0, 1 << 32),
)
def test_a_stretch_overwritten_costs_the_samples_in_it(shape, at, size, what, seed):
    data, samples = small_tar(*shape)
    at = int(at * len(data))
    size = min(size, len(data) - at)
    last = max(last for _, last, _ in samples.values())
    assume(not (what == "zeros" and at + size > last - 1024))  # which is how an archive ends
    assume(not hits_long_name(data, at, at + 1) and not hits_long_name(data, at + size - 1, at + size))
    filling = bytes(size) if what == "zeros" else Random(seed).randbytes(size)
    check(data[:at] + filling + data[at + size :], samples, at, at + size)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes, place)
def test_a_cut_costs_what_is_behind_it(shape, at):
    data, samples = small_tar(*shape)
    first_end = min(last for _, last, _ in samples.values())
    at = first_end + int(at * (len(data) - first_end))
    check(data[:at], samples, at, len(data))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=3000), st.integers(0, 3))
def test_any_bytes_are_scanned_to_their_end(noise, copies):
    data, _ = small_tar("pax", LONG)
    with suppress(tar.TarError):
        read_sound(data[: 1536 * copies] + noise + data[512 * copies :][:4096])
