"""Tars as users have them: what cannot be read rightly is named, and no neighbour is lost or blamed."""

import os
import subprocess
import tarfile
import time
from contextlib import suppress

import pytest

from data_tools.dataset.index import index_shards
from data_tools.formats import tar
from data_tools.formats.scan import scan_shard

BLOCK = 512
FORMS = [
    ["--format=gnu"],
    *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")),
]


def member(name, data=b"x", kind=tarfile.REGTYPE, form=tarfile.PAX_FORMAT, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def archive(*members):
    """An archive, padded to whole records as tar does, of names or (name, data) or whole members."""
    parts = [m if isinstance(m, bytes) else member(*((m,) if isinstance(m, str) else m)) for m in members]
    data = b"".join(parts) + bytes(2 * BLOCK)
    return data + bytes(-len(data) % 10240)


def header(kind, size=0, name="a.txt", **fields):
    """A header block whose checksum is right, with other bytes where ``fields`` say (``at124=b"-1"``)."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for place, value in fields.items():
        at = int(place.removeprefix("at"))
        block[at : at + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def scan(data):
    return scan_shard(lambda offset, size: data[offset : offset + size], len(data), with_crc=True)


def sound(data):
    """{key: {extension: bytes}} of the valid samples, each read as a run would."""
    sidecar = scan(data).sidecar
    found = {}
    for row in range(len(sidecar)):
        if sidecar.valid[row]:
            start, size = int(sidecar.offset[row]), int(sidecar.size[row])
            key, members = tar.sample_members(data[start : start + size])
            found[key] = {extension: bytes(payload) for extension, payload in members.items()}
    return found


def bad(data):
    """{key: reason} of the samples that are marked."""
    return {key: reason for _, key, reason in scan(data).bad}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[-1])
def test_sparse_members_of_tar_are_read(tmp_path, form):
    for number in range(2):
        with (tmp_path / f"{number}.bin").open("wb") as file:
            for piece in range(6 * number + 1):  # the second needs more pieces than a header holds
                file.seek(piece * 65536)
                file.write(b"piece %d" % piece)
            file.truncate(file.tell() + 70000)
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    names = [f"{number}.{extension}" for number in range(2) for extension in ("bin", "txt")]
    subprocess.run(["tar", "-S", *form, "-cf", "s.tar", *names], cwd=tmp_path, check=True)
    data = (tmp_path / "s.tar").read_bytes()
    assert len(data) < 100_000
    files = {name: (tmp_path / name).read_bytes() for name in names}
    assert sound(data) == {
        str(n): {extension: files[f"{n}.{extension}"] for extension in ("bin", "txt")} for n in range(2)
    }


BEYOND = tar.MAX_SAMPLE_BYTES + 1
ODD = {
    "a hard link": (
        archive("a.jpg", "a.txt", member("b.jpg", b"", tarfile.LNKTYPE, target="a.jpg"), "b.txt", "c.jpg", "c.txt"),
        "ac", {"b": "b.jpg is a hard link to a.jpg"},
    ),
    "a symbolic link": (
        archive("a.jpg", "b.jpg", member("c.jpg", b"", tarfile.SYMTYPE, target="/x")),
        "ab", {"c": "c.jpg is a symbolic link to /x"},
    ),
    "a sparse member beyond the limit": (
        archive("a.npy", header(b"S", name="b.npy", at483=b"77777777777"), "c.npy"),
        "ac", {"b": "the limit is"},
    ),
    "sparse members beyond the limit together": (
        archive("a.npy", header(b"S", name="b.npy", at483=b"%011o\0" % (200 << 20)),
                header(b"S", name="b.bin", at483=b"%011o\0" % (200 << 20)), "c.npy"),
        "ac", {"b": "the limit is"},
    ),
    "a sparse member without its map": (
        archive("a.npy", "GNUSparseFile.7/b.npy", "c.npy"), "ac", {"GNUSparseFile.7/b": "sparse member is lost"},
    ),
    "two archives joined": (archive("a.jpg", "b.jpg") + archive("c.txt", "c.cls", "d.txt", "d.cls"), "abcd", {}),
    "two archives joined, of one sample each": (archive("a.jpg") + archive("c.txt", "c.cls"), "ac", {}),
    "files of macOS": (
        archive("._a.jpg", "a.jpg", "._a.txt", "a.txt", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", "d/._b.jpg", "d/b.jpg",
                "d/.DS_Store", "d/b.txt"),
        ["a", "d/b"], {},
    ),
    "members of one kind after the other": (
        archive("a.jpg", "b.jpg", "a.txt", "b.txt", "c.jpg", "c.txt"), "c",
        {"a": "stand together", "b": "stand together"},
    ),
    "keys with dots": (archive("v1.0/a.left.jpg", "v1.0/a.txt", "v1.0/b.txt"), ["v1.0/a", "v1.0/b"], {}),
    "a key that comes twice, complete": (archive("a.jpg", "b.jpg", "a.jpg"), "ab", {}),
    "an extension that comes twice": (archive("a.jpg", "a.jpg", "b.jpg"), "b", {"a": "two members named .jpg"}),
    "a key that is no UTF-8": (archive(("caf\udce9.jpg", b"1"), "b.jpg"), ["caf\udce9", "b"], {}),
    "a size below zero": (
        archive("a.jpg", header(b"0", name="b.jpg", at124=b"-0000001000\0"), "c.jpg"), "ac", {"b": "size"},
    ),
    "a damaged pax header": (
        archive("a.jpg", member("é" * 90 + ".jpg").replace(b" path=", b"!path=", 1), "c.jpg"), "ac", {"?": "malformed"},
    ),
    "a header damaged behind a good long name": (
        archive("a.jpg", member("é" * 90 + ".jpg").replace(b"0000644", b"0000645", 1)[:-2 * BLOCK]
                + header(b"0").replace(b"a", b"b") + bytes(BLOCK), "c.jpg"),
        "ac", {"é" * 90 + ".jpg": "checksum"},
    ),
    "a sample without its picture, beside a damaged one": (
        archive("a.jpg", "a.txt", "b.txt", header(b"0", 1, "c.jpg").replace(b"c", b"C") + bytes(BLOCK), "d.jpg",
                "d.txt", "e.jpg", "e.txt"),
        "abde", {"C.jpg": "checksum"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_read_or_named_and_no_neighbour_is_lost(name):
    data, kept, named = ODD[name]
    assert list(sound(data)) == list(dict.fromkeys(kept))
    found = bad(data)
    assert len(found) == len(named)
    for (key, reason), (expected, part) in zip(sorted(found.items()), sorted(named.items()), strict=True):
        assert key.startswith(expected)
        assert part in reason


def test_files_that_are_part_of_no_sample_are_said():
    assert (
        "1 files are part of no sample, the first 'img2'" in scan(archive("img1.jpg", "img2", ".x")).faults[0]
    )


@pytest.mark.parametrize("size", [BEYOND, 5 << 30, 9 << 30], ids=lambda size: f"{size / 2**30:.0f} GiB")
def test_a_member_that_the_sidecar_cannot_hold_is_named_and_its_neighbours_are_read(tmp_path, size):
    big = tarfile.TarInfo("b.bin")
    big.size = size
    with (tmp_path / "s.tar").open("wb") as file:  # sparse on disk: two records of real bytes
        file.write(member("a.bin", b"first") + big.tobuf(tarfile.GNU_FORMAT))
        file.seek(size + -size % BLOCK, os.SEEK_CUR)
        file.write(archive(("c.bin", b"last")))
    handle = os.open(tmp_path / "s.tar", os.O_RDONLY)
    found = scan_shard(lambda o, n: os.pread(handle, n, o), os.fstat(handle).st_size, with_crc=True)
    os.close(handle)
    assert [(key, "beyond the limits" in reason) for _, key, reason in found.bad] == [("b", True)]
    assert found.sidecar.valid.tolist() == [1, 0, 1]
    assert int(found.sidecar.offset[2]) == 3 * BLOCK + size + -size % BLOCK


SMALL = 2 << 20
HOSTILE = {
    "a flipped bit before zeros": archive("a.txt") + header(b"0").replace(b"a", b"b") + bytes(SMALL) + archive("c.txt"),
    "long names without end": header(b"L") * (SMALL // BLOCK),
    "pax headers over pax headers": header(b"x", 1024) * (SMALL // BLOCK),
    "a pax header of empty records": header(b"x", 1 << 20) + b"6 a=b\n" * (SMALL // 6),
    "every other header damaged": (header(b"0").replace(b"a", b"b") + member("b.txt")) * (SMALL // 1536),
    "every member cut": header(b"0", 1 << 32) * (SMALL // BLOCK),
    "a key of thousands of members": b"".join(member(f"a.{i}", b"") for i in range(SMALL // BLOCK)),
    "a sparse map without end": header(b"S", at482=b"\1") + (b"%011o\0" % 0 * 42 + b"\1" + bytes(7)) * (SMALL // BLOCK),
    "joints between all": archive("a.txt") * (SMALL // 10240),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_small_tar_stops_the_scan(name):
    """Time in the processor, of which 394 s went into 8 MB: these 2 MB may take a second each."""
    begin = time.process_time()
    with suppress(tar.TarError):
        scan(HOSTILE[name])
    assert time.process_time() - begin < 2


def test_an_empty_tar_is_left_out_and_said(tmp_path):
    for name, data in {
        "a": archive("a.txt"),
        "b": b"",
        "c": bytes(10240),
        "d": archive("README"),
        "e": archive("e.txt"),
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    manifest, found = index_shards(sorted(tmp_path.glob("*.tar")), tmp_path)
    assert manifest.urls == ["a.tar", "e.tar"]
    assert [(shard, "holds no samples" in reason) for shard, _, reason in found] == [
        (f"{n}.tar", True) for n in "bcd"
    ]


def test_samples_that_lack_what_all_others_have_are_listed(tmp_path):
    names = [
        f"{n:02d}.{e}" for n in range(20) for e in ("jpg", "txt") if (n, e) not in ((7, "jpg"), (9, "jpg"))
    ]
    (tmp_path / "a.tar").write_bytes(archive(*names))
    manifest, found = index_shards([tmp_path / "a.tar"], tmp_path)
    assert manifest.counts.tolist() == [20]
    assert found == [
        ("a.tar", "07", "incomplete: has no image, as other samples have; nor have 1 others of this shard")
    ]
