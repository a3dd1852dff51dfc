"""Views of images: each operation is the published one; no view depends on what is beside it, or where it is made."""

from __future__ import annotations

import colorsys
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data_tools.errors import UserError
from pretrain.augment.colour import HUE, jitter, solarise, to_grey
from pretrain.augment.config import AugmentConfig, ViewConfig
from pretrain.augment.image import random_box
from pretrain.augment.views import Augmentation, Views
from tests.pretrain.test_no_waiting import Spy

EVERYTHING = ViewConfig(jitter=0.8, grey=0.3, blur=0.5, solarise=0.3)
SIZES = ((40, 60), (61, 33), (24, 24))


def picture(height=40, width=60, channels=3, seed=0):
    """Smooth colours with some noise, bytes (H, W, C)."""
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.integers(0, 256, (5, 6, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height))) for c in range(channels)]
    noise = rng.integers(-20, 21, (height, width, channels))
    return (np.stack(planes, 2).astype(int) + noise).clip(0, 255).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def batch_of(views, images):
    """The same images as a padded batch (source, drawn, own size)."""
    augmentation = Augmentation(view=views)
    examples = [augmentation.draw(image, np.random.default_rng(i)) for i, image in enumerate(images)]
    padded = augmentation.pad(examples)
    return [
        torch.from_numpy(np.stack([e[name] for e in padded]))
        for name in ("source", "view.drawn", "source_size")
    ]


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 31, 96])
def test_crop_and_resize_are_pillows(kernel, size):
    image = picture()
    views = Views(ViewConfig(interpolation=kernel, flip=0.5), (size, size + 3), 3, count=8)
    drawn = views.draw(*image.shape[:2], np.random.default_rng(0))
    made = views.make(*(torch.from_numpy(x)[None] for x in (image, drawn, np.array(image.shape[:2]))))[
        0
    ].numpy()
    sampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[kernel]
    assert 0 < drawn[:, 4].sum() < 8
    for numbers, view in zip(drawn, made, strict=True):
        box = tuple(numbers[:4] * np.array([60, 40, 60, 40]))
        for c in range(3):
            plane = Image.fromarray(image[..., c].astype(np.float32)).resize(
                (size + 3, size), sampling, box=box
            )
            expected = np.asarray(plane)[:, :: -1 if numbers[4] else 1].clip(0, 255) / 255
            np.testing.assert_allclose(view[c], expected, atol=1e-4)


def test_a_view_of_the_centre_is_the_whole_image_where_it_has_that_size():
    image = picture(24, 24)
    views = Views(ViewConfig(crop_scale=(1, 1), flip=0), 24, 3)
    made = views.make(*batch_of(views, [image]))[0]
    assert torch.equal(made, tensor(image)[0])


def blend(image, other, factor):
    return (image * factor + other * (1 - factor)).clip(0, 1)


def grey_of(image):
    """(3, H, W) → (1, H, W)."""
    return np.tensordot([[0.2989, 0.587, 0.114]], image, 1)


def turned(image, turn):
    """By Python's own colour circle."""

    def one(pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    return np.apply_along_axis(one, 0, image)


REFERENCE = (
    lambda x, f: blend(x, 0, f),
    lambda x, f: blend(x, grey_of(x).mean(), f),
    lambda x, f: blend(x, grey_of(x), f),
    turned,
)  # fmt: skip
"""ColorJitter of torchvision in float64: brightness, contrast, saturation, hue."""


def test_jitter_is_torchvisions_in_any_order():
    rng = np.random.default_rng(0)
    orders = [rng.permutation(4) for _ in range(6)]
    factors = np.array([[*rng.uniform(0.2, 1.8, 3), rng.uniform(-0.5, 0.5)] for _ in orders])
    image = picture(12, 14)
    image[:2] = 77  # without a hue
    x = tensor(image)
    made = jitter(x.expand(6, -1, -1, -1), torch.tensor(factors).float(), torch.tensor(np.array(orders)))
    for order, numbers, found in zip(orders, factors, made, strict=True):
        expected = x[0].double().numpy()
        for turn in order:
            expected = REFERENCE[turn](expected, numbers[turn])
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert len(np.unique(made.flatten(1).sum(1))) == 6
    unchanged = jitter(x, torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[HUE, 0, 1, 2]]))
    assert torch.equal(unchanged, x)


def test_grey_and_solarised_are_pillows():
    image = picture()
    x, yes, no = tensor(image), torch.tensor([[True]]), torch.tensor([[False]])
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert np.abs(to_grey(x, yes)[0].numpy() * 255 - grey).max() < 1
    inverted = np.asarray(ImageOps.solarize(Image.fromarray(image), 128)).transpose(2, 0, 1)
    np.testing.assert_allclose(solarise(x, yes)[0] * 255, inverted, atol=1e-4)
    assert torch.equal(to_grey(x, no), x) and torch.equal(solarise(x, no), x)


def test_blur_is_a_gaussian_with_reflected_edges():
    x = tensor(picture(40, 50))
    blurred = Views(ViewConfig(), (40, 50), 3).blur(x.expand(2, -1, -1, -1), torch.tensor([[1.3], [0]]))
    assert torch.equal(blurred[1], x[0])
    weight = np.exp(-0.5 * (np.arange(-2, 3) / 1.3) ** 2)  # a tenth of 40 and of 50 pixels, made odd: 5
    weight /= weight.sum()
    padded = np.pad(x[0].double().numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = sum(w * padded[:, k : k + 40] for k, w in enumerate(weight))
    expected = sum(w * expected[:, :, k : k + 50] for k, w in enumerate(weight))
    np.testing.assert_allclose(blurred[0], expected, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_view_has_the_same_bits_alone_and_in_any_batch(threads):
    """The way of a GPU, all at once, too: with the work of every operation for every image."""
    views = Views(EVERYTHING, 200, 3, count=2)  # large enough that torch shares an image among threads
    images = [picture(*size) for size in SIZES]
    source, drawn, own_size = batch_of(views, images)
    assert source.shape == (3, 61, 60, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = views.change(views.crop(source, drawn, own_size), drawn.flatten(0, 1))
        one_by_one = views.make(source, drawn, own_size)
        torch.set_num_threads(1)
        parts = [views.make(*batch_of_one(image, d)) for image, d in zip(images, drawn, strict=True)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one_by_one, torch.cat(parts))
    assert torch.equal(together, one_by_one.flatten(0, 1))
    assert ((one_by_one >= 0) & (one_by_one <= 1)).all()


def test_no_operation_on_a_device_waits_for_it():
    views = Views(EVERYTHING, 16, 3, count=2)
    batch = batch_of(views, [picture(*size) for size in SIZES])
    everything = (
        mock.patch(f"pretrain.augment.{name}.needed", lambda _: True) for name in ("colour", "views")
    )
    with next(everything), next(everything), Spy() as spy:
        views.change(views.crop(*batch), batch[1].flatten(0, 1))
    assert spy.waits == []


def batch_of_one(image, drawn):
    return torch.from_numpy(image)[None], drawn[None], torch.tensor([image.shape[:2]])


def augmentation():
    local = ViewConfig(crop_scale=(0.05, 0.4), blur=0.5)
    return Augmentation(all=Views(EVERYTHING, 32, 3, count=2), local=Views(local, 12, 3, count=4))


def test_views_made_on_the_host_and_on_arrival_are_the_same():
    images = [picture(*size) for size in SIZES]
    made = {}
    for place in ("host", "device"):
        one = pickle.loads(pickle.dumps(augmentation()))  # as worker processes get it
        examples = [
            one.prepare(
                {**one.draw(image, np.random.default_rng(i)), "class": np.int64(i)}, AugmentConfig(on=place)
            )
            for i, image in enumerate(images)
        ]
        padded = one.pad(examples)
        batch = {
            name: torch.from_numpy(np.stack([np.asarray(e[name]) for e in padded])) for name in padded[0]
        }
        assert ("source" in batch) == (place == "device")
        made[place] = one.make(batch)
    assert made["host"].keys() == made["device"].keys() == {"class", "all", "local"}
    assert made["host"]["all"].shape == (3, 2, 3, 32, 32) and made["host"]["local"].shape == (3, 4, 3, 12, 12)
    assert all(torch.equal(made["host"][name], made["device"][name]) for name in made["host"])


def test_what_travels_is_no_larger_than_asked_for():
    one, image = augmentation(), picture(60, 90)
    config = AugmentConfig(on="device", source_size=30)
    small = one.prepare(one.draw(image, np.random.default_rng(0)), config)
    assert small["source"].shape == (30, 45, 3)
    views, drawn = Views(ViewConfig(flip=0), 16, 3), torch.from_numpy(small["all.drawn"][:1])
    drawn[0, 4:] = torch.tensor([0, 1, 1, 1, 0, 0, 1, 2, 3, 0, 0, 0])
    made, whole = (views.make(*batch_of_one(source, drawn)) for source in (small["source"], image))
    assert (made - whole).abs().mean() < 0.03, "the box is the same part of the image"


def test_any_number_of_channels_and_bits():
    grey = picture(channels=1)
    plain = ViewConfig(jitter=1, saturation=0, hue=0, grey=0.5, blur=1, solarise=1)
    for channels in (1, 5):
        views = Views(plain, 16, channels, count=4)
        made = views.make(*batch_of(views, [np.repeat(grey, channels, 2)]))
        assert made.shape == (1, 4, channels, 16, 16) and made.isfinite().all()
    one = Augmentation(view=Views(ViewConfig(), 16, 3))
    examples = [
        one.draw(image, np.random.default_rng(0)) for image in (picture(), picture().astype(np.uint16) * 257)
    ]
    alone = [one.prepare(example, AugmentConfig())["view"] for example in examples]
    torch.testing.assert_close(alone[0], alone[1], atol=1e-6, rtol=0)
    mixed = one.pad(examples)
    assert {e["source"].dtype for e in mixed} == {np.dtype(np.float32)}
    np.testing.assert_allclose(mixed[0]["source"], mixed[1]["source"], atol=1e-6)


def test_alpha_is_no_colour():
    image = picture(channels=4)
    drawn = Views(EVERYTHING, 16, 4, count=6).draw(40, 60, np.random.default_rng(3))
    drawn[:, 14] = 0  # not blurred
    plain = drawn.copy()
    plain[:, 5:] = [1, 1, 1, 0, 0, 1, 2, 3, 0, 0, 0]
    made, cropped = (
        Views(EVERYTHING, 16, 4, count=6).make(*batch_of_one(image, torch.from_numpy(d)))
        for d in (drawn, plain)
    )
    assert torch.equal(made[:, :, 3], cropped[:, :, 3])
    assert not torch.equal(made[:, :, :3], cropped[:, :, :3])


@pytest.mark.parametrize("name", ["saturation", "hue"])
@pytest.mark.parametrize("channels", [1, 5])
def test_what_only_rgb_has_is_refused_of_others(name, channels):
    strengths = {"saturation": 0.0, "hue": 0.0, name: 0.2}
    with pytest.raises(
        UserError, match=rf"objective\.views\.{name}=0\.2: .*num_channels={channels}; set .*=0"
    ):
        Views(ViewConfig(jitter=1, **strengths), 16, channels)
    Views(ViewConfig(jitter=0, **strengths), 16, channels)


def test_shares_are_kept():
    views = Views(EVERYTHING, 16, 3, count=4000)
    drawn = views.draw(40, 60, np.random.default_rng(0))
    shares = {"flip": drawn[:, 4], "jitter": drawn[:, 5] != 1, "grey": drawn[:, 13],
              "blur": drawn[:, 14] > 0, "solarise": drawn[:, 15]}  # fmt: skip
    for name, found in shares.items():
        assert found.mean() == pytest.approx(getattr(EVERYTHING, name), abs=0.03), name
    jittered = drawn[shares["jitter"]]
    assert (np.abs(jittered[:, 5:8] - 1) <= 0.4).all() and (np.abs(jittered[:, 8]) <= 0.1).all()
    assert np.bincount(jittered[:, 9].astype(int)) == pytest.approx(len(jittered) / 4, rel=0.15)


def test_what_never_happens_takes_no_random_number():
    """So crops of an objective that only crops are those that it had before there were views."""
    views, rng, other = Views(ViewConfig(flip=0), 16, 3), np.random.default_rng(5), np.random.default_rng(5)
    box = views.draw(40, 60, rng)[0, :4] * np.array([60, 40, 60, 40])
    assert box == pytest.approx(random_box(40, 60, other, (16, 16), (0.08, 1.0)))
    assert rng.random() == other.random()
