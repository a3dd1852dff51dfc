"""Pictures of other depths, and with other channels, than the encoder expects: in the batch, and in a run."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from tiny_run import SMALL

from data_tools.__main__ import main as data_main
from data_tools.errors import UserError
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from finetune.labels import LabelledDataConfig, label_of
from pretrain.config.load import load_config
from pretrain.data import build_loader, first_of, open_sources
from pretrain.encoders.image.base import image_to_array
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.engine.base import World
from pretrain.objectives.attribute_answers import AttributeSpec, answer
from pretrain.run.run import build_objective
from pretrain.weights.model_folder import resolve_encoder

RGBA = np.dstack([np.zeros((4, 4, 3)), np.tile([0, 255], (4, 2))]).astype(np.uint8)


def encode(pixels, form="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mixed_depths(tmp_path_factory):
    """Eight grey pictures of the same shade, the last but one of which has 16 bits, and one is half transparent."""
    folder = tmp_path_factory.mktemp("depths")
    with ShardWriter(folder) as writer:
        for i in range(8):
            pixels = np.full((28, 28), 51, dtype=np.uint8)
            if i == 6:
                pixels = np.full((28, 28), 51 * 257, dtype=np.uint16)
            if i == 3:
                pixels = np.dstack([pixels, np.full_like(pixels, 255)])
            writer.write(str(i), {"png": encode(pixels)})
        finish_dataset(writer)
    return folder


def test_every_picture_is_scaled_by_its_own_depth_whatever_shares_its_micro_batch(mixed_depths):
    found = []
    for size in (1, 4, 8):
        settings = ["train.global_batch_size=8", f"train.micro_batch_size={size}", "data.workers=0"]
        config, _ = load_config("mae_digits", [*SMALL, f"data.path={mixed_depths}", *settings])
        objective = build_objective(config, first_of(sources := open_sources(config.data)))
        step = next(iter(build_loader(config, objective, sources, World())))
        pixels = [objective.encoder.pixels(batch["image"]).numpy() for batch in step.micro_batches]
        found.append(np.concatenate(pixels))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[1], found[2])
    assert np.ptp(found[0]) < 1e-5


def test_bytes_travel_as_bytes_where_all_are():
    views = [{"image": np.zeros((1, 2, 2), dtype=np.uint8)}] * 2
    assert ViTEncoder.collate(views)["image"].dtype.itemsize == 1


@pytest.mark.parametrize(
    "image, channels, background, expected",
    [
        (RGBA, 3, "white", [255, 255, 255]),
        (RGBA, 3, (9, 8, 7), [9, 8, 7]),
        (RGBA, 1, "white", [255]),
        (RGBA, 4, "white", [0, 0, 0, 0]),
        (RGBA, 2, "white", [0, 0]),
        (RGBA[..., 2:], 3, "black", [0, 0, 0]),
        (RGBA[..., 2:], 3, "white", [255, 255, 255]),
        (RGBA[..., 2:], 4, "white", [0, 0, 0, 0]),
        (RGBA[..., :3], 4, "white", [0, 0, 0, 255]),
        (RGBA[..., :1], 4, "white", [0, 0, 0, 255]),
        (RGBA[..., :1], 5, "white", [0, 0, 0, 0, 0]),
    ],
)
def test_every_kind_of_channels_becomes_the_encoders(image, channels, background, expected):
    fitted = image_to_array(image, channels, "here", background)
    assert fitted.shape == (4, 4, channels) and fitted.dtype == np.uint8
    assert fitted[0, 0].tolist() == expected


def test_pictures_that_do_not_say_what_is_white_need_a_range():
    deep = np.array([[[0], [70_000]]], dtype=np.uint32)
    with pytest.raises(UserError, match=r"photo 7: an image of uint32 from 0 to 70000.*encoder\.value_range"):
        image_to_array(deep, 1, "photo 7")
    assert image_to_array(deep, 1, "", "white", (0, 70_000)).ravel().tolist() == [0, 1]
    floats = np.array([[[0.5], [1.0]]], dtype=np.float32)
    assert image_to_array(floats, 3, "").shape == (1, 2, 3)
    with pytest.raises(UserError, match="float32"):
        image_to_array(floats * 300, 1, "")
    gaps = np.array([[[np.nan], [-5.0], [9.0]]], dtype=np.float32)
    assert image_to_array(gaps, 1, "", "white", (-5, 5)).ravel().tolist() == [0, 0, 1]


def test_the_background_is_a_setting_and_checked():
    config, _ = load_config("mae_digits", ["encoder.background=[1, 2, 3]", "encoder.value_range=[0, 9.5]"])
    assert config.encoder.background == (1, 2, 3) and config.encoder.value_range == (0, 9.5)
    with pytest.raises(UserError, match=r"encoder\.background"):
        load_config("mae_digits", ["encoder.background=[1, 2, 300]"])
    with pytest.raises(UserError, match=r"encoder\.value_range.*must rise"):
        load_config("mae_digits", ["encoder.value_range=[5, 5]"])
    assert ViTEncoderConfig().background == "white"


def test_an_encoder_of_a_run_begun_before_the_setting_is_taken_as_it_stands(tmp_path):
    old = asdict(ViTEncoderConfig(from_pretrained=str(tmp_path / "gone"), transformers={}))
    for name in ("background", "value_range"):
        del old[name]
    assert resolve_encoder(old) is old


@pytest.mark.parametrize("value, message", [(float("nan"), "NaN"), ("", "an empty text")])
def test_a_label_that_is_none_is_told_with_its_sample(value, message):
    sample = {"__key__": "cat/7", "json": {"mood": value}}
    with pytest.raises(UserError, match=rf"json\.mood.*{message} in sample 'cat/7'"):
        label_of(sample, LabelledDataConfig(label="json.mood"))
    if message == "NaN":
        with pytest.raises(UserError, match=r"'cat/7': json\.mood is NaN"):
            answer(sample, AttributeSpec(field="json.mood", kind="number"))


def test_brightness_is_that_of_what_is_seen():
    spec = AttributeSpec(derive="brightness", kind="number")
    assert answer({"__key__": "a", "image": RGBA}, spec) == 0.5


def test_statistics_name_the_classes_and_take_floats_as_they_are(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i in range(4):
            writer.write(
                str(i),
                {
                    "tif": encode(np.full((2, 2), 100.0 * i, dtype=np.float32), "TIFF"),
                    "cls": str(i % 3).encode(),
                },
            )
        finish_dataset(writer, {"classes": ["cat", "dog"]})
    assert data_main(["stats", str(tmp_path), "--json", str(tmp_path / "s.json")]) == 0
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["labels"] == {"cat": 2, "dog": 1, "2": 1}
    assert stats["channels"]["1 float32"]["mean"] == [150.0]
