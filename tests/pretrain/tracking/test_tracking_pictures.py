"""Pictures: what is drawn is what was given, visible and in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.tracking.pictures import (
    CELL,
    GAP,
    ImageGrid,
    TextExcerpt,
    TextExcerpts,
    bar_chart,
    enlarge,
    load_text,
    save_picture,
    text_html,
    to_rgb,
)


def test_small_images_are_enlarged_by_a_whole_factor_and_keep_every_pixel(tmp_path):
    images = torch.rand(3, 1, 28, 28)
    path = save_picture(ImageGrid({"original": images, "reconstruction": images}), tmp_path, 500)
    assert path == tmp_path / "pictures" / "step_00000500.png"
    picture = np.asarray(Image.open(path))
    last = picture[-GAP - 112 : -GAP, -GAP - 112 : -GAP]  # bottom right: the third reconstruction
    expected = (images[2, 0] * 255).round().byte().numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(last, np.stack([expected] * 3, axis=-1))


def test_row_titles_are_drawn_beside_their_rows(tmp_path):
    images = torch.ones(2, 1, 28, 28)  # white on white: only the titles leave ink
    picture = np.asarray(
        Image.open(save_picture(ImageGrid({"original": images, "hidden": images}), tmp_path, 1))
    )
    for row in range(2):
        band = picture[GAP + row * (112 + GAP) :][:112]
        assert (band < 128).any()


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, "mean"), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_any_number_of_channels_can_be_shown(channels, shown):
    image = torch.linspace(0, 1, channels * 4).reshape(channels, 2, 2)
    expected = image.mean(0, keepdim=True).expand(3, 2, 2) if shown == "mean" else image[list(shown)]
    assert np.array_equal(to_rgb(image), (expected * 255).round().byte().permute(1, 2, 0).numpy())


def test_values_outside_the_range_and_not_finite_ones_are_drawable():
    image = torch.tensor([[[-1.0, 2.0, float("nan"), float("inf")]]])
    assert to_rgb(image)[0, :, 0].tolist() == [0, 255, 0, 0]


def test_large_images_stay_as_they_are():
    assert enlarge(np.zeros((224, 224, 3), np.uint8)).shape == (224, 224, 3)


def test_text_comes_back_as_it_was_and_is_safe_inside_html(tmp_path):
    spans = [("<script>alert(1)</script> & ", "given"), ("Ω „äß“", "wrong")]
    path = save_picture(TextExcerpts([TextExcerpt(spans)]), tmp_path, 20)
    assert path.name == "step_00000020.json"
    assert not set("<>&") & set(path.read_text(encoding="utf-8"))
    assert load_text(path).excerpts == [TextExcerpt(spans)]
    html = text_html(load_text(path), lambda kind: f"--kind:{kind}")
    assert "<script>" not in html
    assert '<span style="--kind:wrong">Ω' in html


def test_a_picture_of_nothing_is_still_a_picture(tmp_path):
    assert Image.open(save_picture(ImageGrid({}), tmp_path, 1)).size[1] > 0


def test_bars_are_as_high_as_their_values_and_stand_side_by_side():
    chart = bar_chart(torch.tensor([4.0, 1.0, 0.0, float("nan")]), width=8)
    assert chart.shape == (1, CELL, 8)
    dark = (chart[0] < 0.5).sum(0)
    assert dark.tolist() == [CELL, CELL, CELL // 4, CELL // 4, 0, 0, 0, 0]
    assert (chart[0, -1, :4] < 0.5).all(), "from the bottom"
    assert not (bar_chart(torch.zeros(3)) < 0.5).any()
