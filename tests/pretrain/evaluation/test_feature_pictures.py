"""Pictures of features: what they show is what the encoder computed, and a run draws them at its start and its end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.attention_maps import attention_to_patches, recorded_attention
from pretrain.evaluation.feature_pictures import (
    brighten,
    colour_places,
    draw_features,
    find_neighbours,
    principal_components,
    shrink,
)
from pretrain.evaluation.look import Looks
from pretrain.report.report import write_report
from pretrain.run.run import build_objective, run
from pretrain.tracking.metrics import read_metrics
from pretrain.tracking.pictures import load_text, to_rgb
from pretrain.tracking.scatter import COLOURS, OTHER, colour_classes, scatter
from tests.cases import CASES
from tests.processes import QUIET

ON = ["representation.every=2", "representation.samples=32", "representation.pictures=true"]


def build(case: str, *settings: str):
    config, _ = load_config(CASES[case][0], [*CASES[case][1:], *settings])
    sources = open_sources(config.data)
    return config, build_objective(config, first_of(sources)), sources


def pictures_of(case: str, *settings: str):
    config, objective, sources = build(case, "representation.samples=20", *settings)
    engine = DDPEngine(config.train, World())
    drawn = {}
    Looks(config, objective, sources).look(
        engine, 0, lambda *seen: drawn.update(draw_features(objective, engine, *seen))
    )
    return drawn


def test_components_are_those_of_largest_variance_and_keep_their_sign():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2)) * [10, 1] @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T + 3
    components, share = principal_components(x, 2)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(components.T @ components, np.diag(np.square(components).sum(0)), atol=1e-8)
    assert components[:, 0].std() > 5 * components[:, 1].std()
    np.testing.assert_allclose(principal_components(x[::-1], 2)[0], components[::-1], atol=1e-8)
    narrow, share = principal_components(np.arange(4.0)[:, None], 3)
    assert narrow.shape == (4, 3) and not narrow[:, 1:].any() and share == 1
    assert principal_components(np.ones((4, 3)), 2)[1] == 1, "a constant encoder"


def test_neighbours_are_nearest_by_angle_and_never_the_query_itself():
    features = np.array([[1.0, 0], [10, 1], [0, 1], [-1, 0], [1, 0]])
    order, cosine = find_neighbours(features, [0, 2], 2)
    assert order.tolist() == [[4, 1], [1, 0]]
    assert cosine[0, 0] == pytest.approx(1)
    assert find_neighbours(features[:2], [0], 5)[0].tolist() == [[1]], "as many as there are"


@pytest.mark.parametrize("case", ["mae", "dinov3"])
def test_recorded_attention_changes_nothing_and_is_what_the_last_block_weighs_by(case):
    _, objective, sources = build(case)
    encoder = objective.encoder.eval()
    batch = objective.collate([objective.view(first_of(sources)[i]) for i in range(2)])
    with torch.no_grad():
        plain = encoder(batch)
        with recorded_attention(encoder) as weights:
            recorded = encoder(batch)
        again = encoder(batch)
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, plain)
    (last,) = weights
    tokens = encoder.lead + encoder.num_patches
    assert last.shape == (2, 2, tokens, tokens)
    torch.testing.assert_close(last.sum(-1), torch.ones(2, 2, tokens))
    assert last.std() > 1e-4, "not what an untrained softmax of nothing gives"
    seen = attention_to_patches(last, encoder.lead)
    assert torch.equal(seen, last[:, :, 0, encoder.lead :]), "the class token is the first"
    bare = last[..., encoder.lead :, encoder.lead :]
    torch.testing.assert_close(attention_to_patches(bare, 0)[0, 1, 3], bare[0, 1, :, 3].mean())
    bright = brighten(seen.unflatten(2, encoder.token_grid))
    assert torch.equal(bright.amax((1, 2, 3)), torch.ones(2))


def test_like_places_have_like_colours():
    features = np.zeros((2, 8, 4))
    features[0, :4, 0], features[1, 6:, 1] = 5, 3
    colours = colour_places(features)
    assert colours.shape == (2, 8, 3)
    assert len(np.unique(colours.round(6).reshape(-1, 3), axis=0)) == 3


def test_a_map_has_a_dot_of_its_class_at_each_point():
    picture = to_rgb(scatter(np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]]), ["a", "a", "b", None], "four"))
    coloured = {
        name: np.abs(picture.astype(int) - hexadecimal(name)).max(2) < 8 for name in (*COLOURS[:2], OTHER)
    }
    left, right = np.s_[200:, :220], np.s_[200:, 220:440]
    assert coloured[COLOURS[0]][left].any() and coloured[COLOURS[0]][right].any(), "a: both at the bottom"
    assert coloured[COLOURS[1]][:200, :220].any() and not coloured[COLOURS[1]][:200, 220:440].any()
    assert coloured[OTHER][:200, 220:440].any()
    plain = scatter(np.zeros((3, 2)), [None] * 3, "one place, no label")
    assert plain.shape[2] < picture.shape[1], "no legend"


def hexadecimal(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_the_most_frequent_classes_have_colours_in_the_order_of_their_numbers():
    labels = [*range(12), *range(1, 11)]
    assert list(colour_classes(labels)) == list(range(1, 11))
    assert colour_classes([None]) == {}


def test_large_images_become_thumbnails():
    assert shrink(torch.rand(1, 3, 448, 224)).shape == (1, 3, 112, 56)
    assert shrink(torch.rand(1, 3, 28, 28)).shape == (1, 3, 28, 28)


def test_each_encoder_has_the_pictures_that_it_can_have():
    assert set(pictures_of("autoencoder_mlp")) == {"map", "neighbours"}, "one vector, no places"
    assert set(pictures_of("vqvae")) == {"map", "neighbours", "patches"}
    text = pictures_of("mlm")
    assert set(text) == {"map", "neighbours"}
    spans = text["neighbours"].excerpts[0].spans
    assert [kind for _, kind in spans].count("truth") == 6, "the query and five others"
    assert len(spans[1][0]) > 20
    assert not pictures_of("mlm", "representation.pictures=false")


def test_features_that_are_not_finite_are_not_drawn():
    _, objective, _ = build("mae")
    assert draw_features(objective, None, np.full((3, 2), np.nan), [], []) == {}


def test_a_run_draws_at_its_start_and_its_end_for_its_report(tmp_path):
    settings = [
        *CASES["mae"][1:],
        *QUIET,
        *ON,
        "train.steps=3",
        "train.global_batch_size=8",
        f"run_dir={tmp_path}",
    ]
    run(load_config("mae_digits", settings)[0])
    steps = {}
    for line in read_metrics(tmp_path):
        if line["kind"].startswith("picture/"):
            steps.setdefault(line["kind"], []).append(line["step"])
            assert np.asarray(Image.open(tmp_path / line["path"])).std() > 5
    names = ("map", "neighbours", "patches", "attention")
    assert steps == {f"picture/{name}": [0, 3] for name in names}
    html = write_report(tmp_path).read_text()
    assert [title for title in ("Map of the samples", "Nearest neighbours", "Features of places", "Attention")
            if f"<h3>{title}</h3>" not in html] == []  # fmt: skip
    assert html.count("data:image/png") == 8


def test_texts_of_neighbours_come_back_from_their_file(tmp_path):
    from pretrain.tracking.pictures import TextExcerpt, TextExcerpts, save_picture

    path = save_picture(TextExcerpts([TextExcerpt([("query", "truth")])]), tmp_path, 7, "neighbours")
    assert path.name == "step_00000007_neighbours.json"
    assert load_text(path).excerpts[0].spans == [("query", "truth")]
