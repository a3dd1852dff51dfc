"""Images as users have them: turned, deep, transparent, animated, cut, of many extensions."""

import io

import numpy as np
import pytest
from odd_images import ORIENTATION, encode, gradient, png16, tiff
from PIL import ImageOps, features

from data_tools.decode import image as decoding
from data_tools.decode import jpeg
from data_tools.decode.kinds import field_names
from data_tools.decode.options import DecodeError, DecodeOptions, MissingExtraError
from data_tools.decode.pixels import lay_on
from data_tools.decode.sample import decode_sample

NOISE = np.random.default_rng(0).integers(0, 65536, (6, 5, 4), dtype=np.uint16)


def decode(extension, data, **options):
    return decode_sample("key", {extension: memoryview(data)}, DecodeOptions(**options))["image"]


@pytest.fixture(params=["simplejpeg", "pillow"])
def reader(request, monkeypatch):
    """With the extra `fast`, and without it."""
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")


def turned(orientation):
    picture = gradient()
    picture.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture)).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(reader, orientation):
    forms = [("JPEG", "jpg", {"quality": 95}), ("PNG", "png", {}), ("TIFF", "tif", {}), ("WEBP", "webp", {}),
             ("TIFF", "tif", {"compression": "tiff_lzw"})]  # fmt: skip
    if features.check("avif"):
        forms.append(("AVIF", "avif", {"quality": 95}))
    for form, extension, options in forms:
        image = decode(extension, encode(gradient(), form, orientation, **options))
        assert image.shape == turned(orientation).shape, form
        assert np.abs(image - turned(orientation)).mean() < 4, form
    grey = decode("jpg", encode(gradient().convert("L"), "JPEG", orientation))
    assert grey.shape == (*turned(orientation).shape[:2], 1)


def test_a_photograph_shrunk_while_decoding_is_turned_too(reader):
    data = encode(gradient(400, 600), "JPEG", 6)
    assert decode("jpg", data, min_side=90).shape == (150, 100, 3)


def test_filling_bytes_before_a_marker_hide_no_orientation(reader):
    data = encode(gradient(), "JPEG", 6)
    assert decode("jpg", data[:2] + b"\xff\xff" + data[2:]).shape == (60, 40, 3)


def test_a_damaged_exif_block_costs_no_picture(reader):
    data = (
        encode(gradient(), "JPEG", 6)
        .replace(b"Exif\0\0MM", b"Exif\0\0??")
        .replace(b"Exif\0\0II", b"Exif\0\0??")
    )
    assert decode("jpg", data).shape == (40, 60, 3)


def test_heic_is_read_or_says_which_extra_reads_it(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode(gradient(), "HEIF", 6)
    assert np.abs(decode("heic", data) - turned(6)).mean() < 4
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(MissingExtraError, match=r"pip install masquerade\[heic\]"):
        decode("heic", data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_every_depth_keeps_its_values(order, compress):
    for channels in (3, 4):
        pixels = NOISE[..., :channels]
        assert np.array_equal(decode("png", png16(pixels)), pixels)
        assert np.array_equal(decode("tif", tiff(pixels, order, compress)), pixels)
    for values in ([[70000, -5], [3, 7]], [[0.5, -5.0], [3.0, 7e8]]):
        pixels = np.array(values, dtype=np.float32 if isinstance(values[0][0], float) else np.int32)
        image = decode("tif", tiff(pixels, order, compress))
        assert image.dtype == pixels.dtype and np.array_equal(image[..., 0], pixels)
    big = np.array([[70000, 2**32 - 1]], dtype=np.uint32)
    assert np.array_equal(decode("tif", tiff(big, "<", compress))[..., 0], big)


@pytest.mark.parametrize(
    "extension, data",
    [
        ("png", png16(NOISE[..., :2])),
        ("ppm", b"P6 5 6 65535\n" + NOISE[..., :3].astype(">u2").tobytes()),
        ("tif", tiff(NOISE[..., :3].astype(np.float32))),
    ],
)
def test_depths_that_would_be_lost_are_refused_with_the_remedy(extension, data):
    with pytest.raises(DecodeError, match=r"store it as 16-bit RGB|PNG, JPEG and TIFF of up to 16 bits"):
        decode(extension, data)


def cut_jpegs():
    data = encode(gradient(), "JPEG", quality=90)
    scan = data.find(b"\xff\xda")
    return {
        "no end mark": (data[:-2], True),
        "no end mark, progressive": (encode(gradient(), "JPEG", progressive=True)[:-2], True),
        "stray bytes between segments": (data[:scan] + b"\0\1\2" + data[scan:], True),
        "bytes behind the end": (data + b"more", True),
        "cut in the last rows": (data[:-8], False),
        "cut in its middle": (data[: (scan + len(data)) // 2], False),
    }


@pytest.mark.parametrize("name", cut_jpegs())
def test_a_jpeg_is_sound_or_damaged_whatever_reads_it(reader, name):
    data, sound = cut_jpegs()[name]
    if sound:
        assert np.abs(decode("jpg", data) - turned(1)).mean() < 4
        return
    with pytest.raises(DecodeError, match="cut short"):
        decode("jpg", data)


def test_what_is_transparent_is_known_of_every_kind_of_file():
    rgba = gradient().convert("RGBA")
    rgba.putalpha(128)
    channels = {
        "png": (encode(rgba, "PNG"), 4),
        "webp": (encode(rgba, "WEBP"), 4),
        "tif": (encode(rgba.convert("LA"), "TIFF"), 2),
        "gif": (encode(rgba.convert("P"), "GIF", transparency=3), 4),
        "png ": (encode(gradient().convert("L"), "PNG", transparency=7), 2),
        "png  ": (encode(gradient(), "PNG", transparency=(1, 2, 3)), 4),
    }
    for extension, (data, count) in channels.items():
        assert decode(extension.strip(), data).shape == (40, 60, count), extension


def test_transparent_pixels_show_the_background_at_every_depth():
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)):
        image = np.zeros((1, 3, 4), dtype=dtype)
        image[0, :, 3] = 0, white, white / 2
        seen = lay_on(image)
        assert seen.dtype == dtype and seen.shape == (1, 3, 3)
        assert np.allclose(seen[0, :, 0] / white, [1, 0, 0.5], atol=0.003)
        assert np.allclose(lay_on(image, (255, 0, 0))[0, 0] / white, [1, 0, 0])
        assert np.allclose(lay_on(image[..., 2:], "black"), 0)


def test_pages_are_counted_and_a_phones_second_picture_is_none():
    more = [gradient().rotate(9)]
    for form, count in (("TIFF", 2), ("GIF", 2), ("WEBP", 2), ("PNG", 2), ("MPO", 1), ("JPEG", 1)):
        options = {} if form == "JPEG" else {"save_all": True, "append_images": more}
        assert decoding.count_pages(encode(gradient(), form, **options)) == count


def test_depth_that_is_not_read_of_heic_is_known():
    heif = pytest.importorskip("pillow_heif")
    for mode, dtype, cut in (("RGB;16", np.uint16, True), ("RGB", np.uint8, False)):
        buffer = io.BytesIO()
        pixels = np.zeros((32, 32, 3), dtype=dtype)
        heif.from_bytes(mode, (32, 32), pixels.tobytes()).save(buffer, quality=50)
        assert decoding.is_cut_to_bytes(buffer.getvalue()) == cut
    assert not decoding.is_cut_to_bytes(encode(gradient(), "JPEG"))


@pytest.mark.parametrize(
    "extensions, fields",
    [
        (("jpg",), {"jpg": "image"}),
        (("png", "jpg"), {"png": "png", "jpg": "image"}),
        (("JPG", "json"), {"JPG": "image", "json": "json"}),
        (("left.png", "right.png"), {"left.png": "left.png", "right.png": "right.png"}),
        (("mask.png", "webp", "cls"), {"mask.png": "mask.png", "webp": "image", "cls": "label"}),
        (("mask.png",), {"mask.png": "image"}),
        (("txt", "caption.txt"), {"txt": "text", "caption.txt": "caption.txt"}),
        (("heic",), {"heic": "image"}),
        (("jfif", "avif", "jp2"), {"jfif": "image", "avif": "avif", "jp2": "jp2"}),
    ],
)
def test_one_member_of_a_kind_always_has_its_name(extensions, fields):
    assert field_names(extensions) == fields


@pytest.mark.parametrize("label", [b"", b" \n", b"nan", b"1.5", b"cat", b"1_0", b"9" * 30, b"1" + b" " * 80])
def test_a_label_that_is_no_number_names_its_member(label):
    with pytest.raises(DecodeError, match=r"^\.cls: (not a class number: '|empty)"):
        decode_sample("key", {"cls": memoryview(label)}, DecodeOptions())


def test_audio_is_bounded_by_its_values_not_its_seconds():
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((20_000, 8), dtype=np.float32), 655_350, format="FLAC")
    with pytest.raises(
        DecodeError, match=r"20,000 frames of 8 channels .* beyond the limit of 159,999 values"
    ):
        decode_sample("key", {"flac": memoryview(buffer.getvalue())}, DecodeOptions(max_audio_values=159_999))
    soundfile.write(buffer := io.BytesIO(), np.zeros(1000, dtype=np.float32), 1000, format="WAV")
    with pytest.raises(DecodeError, match="beyond the limit"):  # after resampling
        options = DecodeOptions(max_audio_values=10_000, sampling_rate=11_000)
        decode_sample("key", {"wav": memoryview(buffer.getvalue())}, options)
