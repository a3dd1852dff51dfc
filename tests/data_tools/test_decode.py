"""Decoding: what each format becomes, and hostile bytes refused before they cost memory."""

import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image
from small_data import npy

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.resize import resize
from data_tools.decode.sample import _DECODERS, decode_sample
from data_tools.errors import UserError


def decode(extension, data, **options):
    sample = decode_sample("key", {extension: memoryview(data)}, DecodeOptions(**options))
    return {k: v for k, v in sample.items() if k != "__key__"}


def encoded(array, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (9, 13, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    "form, extension", [("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp")]
)
def test_lossless_images_keep_every_pixel(form, extension):
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode(extension, encoded(NOISE[:, :, :3], form, **options))["image"]
    assert image.dtype == np.uint8
    assert np.array_equal(image, NOISE[:, :, :3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_png_are_kept(channels):
    array = NOISE[:, :, 0] if channels == 1 else NOISE[:, :, :channels]
    assert np.array_equal(decode("png", encoded(array, "PNG"))["image"], array.reshape(9, 13, channels))


def test_sixteen_bit_grey_is_kept():
    array = np.arange(117, dtype=np.uint16).reshape(9, 13) * 560
    for form, extension in (("PNG", "png"), ("TIFF", "tif")):
        image = decode(extension, encoded(array, form))["image"]
        assert image.dtype == np.uint16
        assert np.array_equal(image[:, :, 0], array)


def test_sixteen_bit_grey_and_alpha_png_is_refused_rather_than_cut_to_eight():
    with pytest.raises(DecodeError, match="would lose its low bits"):
        decode("png", raw_png(4, 4, depth=16, colour=4, data=zlib.compress(bytes(4 * 17))))


def test_palette_and_bilevel_images_become_colours_and_grey():
    palette = Image.fromarray(NOISE[:, :, :3]).quantize(4)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(decode("png", buffer.getvalue())["image"], np.asarray(palette.convert("RGB")))
    assert set(np.unique(decode("png", encoded(NOISE[:, :, 0] > 128, "PNG"))["image"])) == {0, 255}


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(
        np.uint8
    )


def test_jpeg_is_shrunk_while_decoding_but_not_below_what_is_asked():
    data = encoded(smooth(750, 1000), "JPEG", quality=95)
    assert decode("jpg", data)["image"].shape == (750, 1000, 3)
    image = decode("jpg", data, min_side=224)["image"]
    assert image.shape == (375, 500, 3)  # a half; a quarter would be too small
    assert decode("jpg", data, min_side=90)["image"].shape == (94, 125, 3)
    reference = np.asarray(
        Image.fromarray(smooth(750, 1000)).resize(image.shape[1::-1], Image.Resampling.BOX)
    )
    assert np.abs(image.astype(int) - reference).mean() < 3


def test_jpeg_without_simplejpeg_looks_the_same(monkeypatch):
    data = encoded(smooth(300, 400), "JPEG", quality=95)
    fast = decode("jpg", data)["image"]
    monkeypatch.setattr("data_tools.decode.jpeg._simplejpeg", lambda: None)
    slow = decode("jpg", data)["image"]
    assert slow.shape == fast.shape
    assert np.abs(slow.astype(int) - fast).mean() < 2
    assert decode("jpg", data, min_side=100)["image"].shape == (
        150,
        200,
        3,
    )  # Pillow's scales are powers of two


def test_image_format_is_told_by_its_bytes_not_by_its_extension():
    assert np.array_equal(decode("jpg", encoded(NOISE, "PNG"))["image"], NOISE)
    assert decode("png", encoded(smooth(8, 8), "JPEG"))["image"].shape == (8, 8, 3)


def test_grey_jpeg_has_one_channel():
    assert decode("jpeg", encoded(NOISE[:, :, 0], "JPEG"))["image"].shape == (9, 13, 1)


def test_text_json_label_and_arrays():
    assert decode("txt", "naïve".encode()) == {"text": "naïve"}
    assert decode("json", b'{"a": [1, 2]}') == {"json": {"a": [1, 2]}}
    assert decode("cls", b"7") == {"label": 7}
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    assert np.array_equal(decode("npy", npy(array))["array"], array)
    assert decode("tokens.npy", npy(np.arange(4, dtype=np.uint16)))["tokens"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("extension", ["flac", "wav", "ogg"])
def test_audio(extension):
    soundfile = pytest.importorskip("soundfile")
    wave = np.stack([np.sin(np.arange(8000) / 20), np.cos(np.arange(8000) / 30)], 1).astype(np.float32) * 0.5
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 8000, format=extension)
    sample = decode(extension, buffer.getvalue())
    assert sample["sampling_rate"] == 8000
    assert sample["audio"].shape == (8000, 2) and sample["audio"].dtype == np.float32
    assert np.abs(sample["audio"] - wave).mean() < 0.03
    pytest.importorskip("soxr")
    assert decode(extension, buffer.getvalue(), sampling_rate=4000)["audio"].shape == (4000, 2)
    with pytest.raises(DecodeError, match="beyond"):
        decode(extension, buffer.getvalue(), max_audio_values=15_999)


def test_video():
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = decode("mp4", buffer.getvalue())["video"]
    assert video.shape == (5, 48, 64, 3)
    assert np.abs(video.mean((1, 2, 3)) - np.arange(5) * 50).max() < 8
    with pytest.raises(DecodeError, match="beyond the limit"):
        decode("mp4", buffer.getvalue(), max_video_values=48 * 64 * 3 * 3)


def raw_png(width, height, depth, colour, data):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs():
    zeros = zlib.compress(bytes(10_001 * 10_000 // 8 + 10_000))  # 100 megapixels in about 12 kB
    return {
        "png": raw_png(10_000, 10_000, depth=1, colour=0, data=zeros),
        "npy": npy(np.zeros(2)).replace(b"(2,)", b"(9" + b"9" * 15 + b",)")[:200],
        "txt": b" " * 2_000_000,
        "json": b"[" * 100_000,
    }


@pytest.mark.parametrize("extension", ["png", "npy", "txt", "json"])
def test_bombs_are_refused_before_they_unfold(extension):
    import tracemalloc

    data = bombs()[extension]
    assert len(data) < 3_000_000
    tracemalloc.start()
    with pytest.raises(DecodeError):
        decode(extension, data, max_text_bytes=1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "extension",
    ["png", "jpg", "webp", "tif", "npy", "tokens.npy", "cls", "json", "txt", "flac", "wav", "mp4"],
)
@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00\xff\xff", b"\xff" * 300])
def test_rubbish_is_a_damaged_sample_whatever_the_format(extension, data):
    if (extension, data) == ("txt", b""):
        return  # an empty text is a text
    with pytest.raises(DecodeError):
        decode(extension, data)


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_memory_that_is_lacking_is_not_taken_for_damage(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setitem(_DECODERS, "text", fail)
    with pytest.raises(MemoryError):
        decode_sample("a", {"txt": memoryview(b"words")}, DecodeOptions())


def test_pickled_objects_in_npy_are_refused_and_not_run(capsys):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(DecodeError, match="refused"):
        decode("npy", buffer.getvalue())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt", "left.pyd"])
def test_pickle_members_are_refused_and_not_run(tmp_path, capsys, extension):
    with pytest.raises(UserError, match="refused"):
        decode(extension, pickle.dumps(Bomb()))
    write_tar(tmp_path / "s.tar", {f"a.{extension}": pickle.dumps(Bomb())})
    with pytest.raises(UserError, match="pickle"):
        open_dataset(tmp_path)
    assert capsys.readouterr().out == ""


def write_tar(path, members, **attributes):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "C:\\evil.txt"])
def test_names_that_point_outside_are_only_keys(tmp_path, name):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "s.tar", {name: b"text"})
    before = set(tmp_path.rglob("*"))
    assert open_dataset(tmp_path / "in")[0]["text"] == "text"
    assert set(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.rglob("*evil.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_sample_with_a_link_or_device_is_left_out_and_its_neighbours_read(tmp_path, kind):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            if i == 1:
                link = tarfile.TarInfo(f"{i}.json")
                link.type, link.linkname = kind, "/etc/passwd"
                archive.addfile(link)
            info = tarfile.TarInfo(f"{i}.cls")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"%d" % i))
    samples = list(open_dataset(path))
    assert [{k: v for k, v in s.items() if k != "__key__"} for s in samples] == [{"label": i} for i in (0, 2)]


def test_sparse_members_are_refused_and_their_neighbours_kept(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in "abc":
            info = tarfile.TarInfo(f"{name}.txt")
            info.size = 1
            info.pax_headers = (
                {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1" + "0" * 15} if name == "b" else {}
            )
            archive.addfile(info, io.BytesIO(b"x"))
    assert [s["__key__"] for s in open_dataset(tmp_path)] == ["a", "c"]


def test_huge_extended_header_is_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {"a.txt": b"x", f"{'b' * (2 << 20)}.txt": b"x", "c.txt": b"x"})
    assert [s["__key__"] for s in open_dataset(tmp_path)] == ["a", "c"]


def test_a_header_that_promises_more_than_the_file_has_costs_one_sample(tmp_path):
    write_tar(tmp_path / "s.tar", {f"{i}.txt": b"text" for i in range(4)})
    data = bytearray((tmp_path / "s.tar").read_bytes())
    header = tarfile.TarInfo("1.txt")
    header.size = 1 << 40
    data[1024:1536] = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "s.tar").write_bytes(data)
    assert [s["__key__"] for s in open_dataset(tmp_path)] == ["0", "2", "3"]


def test_more_members_than_a_sample_may_have_are_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {f"a.{i}.txt": b"" for i in range(300)} | {"b.txt": b"fine"})
    assert [s["__key__"] for s in open_dataset(tmp_path)] == ["b"]


def test_sample_with_a_damaged_member_names_shard_key_and_member(tmp_path):
    write_tar(tmp_path / "s.tar", {"a.json": b"{}", "a.png": b"no picture"})
    with pytest.raises(DamagedSampleError, match=r"s\.tar: sample a: \.png"):
        open_dataset(tmp_path)[0]


def test_optional_readers_are_not_imported_until_needed():
    code = "import sys, data_tools.stream; print([m for m in ('soundfile', 'soxr', 'av', 'torch') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_resize_agrees_with_pillow():
    image = smooth(300, 400)
    ours = resize(image, 90, 120).permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(image).resize((120, 90), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
