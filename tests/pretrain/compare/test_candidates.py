"""Who takes part in a comparison: demo recipes that are made to fit somebody's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import UserError
from pretrain.compare.candidates import find_candidates
from pretrain.compare.options import Options
from pretrain.compare.samples import ImageFacts, Samples

TEXT = {"mlm", "electra", "clm"}
COLOURED = ImageFacts(64, 3, (0.8, 0.7, 0.6), (0.3, 0.3, 0.3))


def images(label: str = "label") -> Samples:
    digits = Path("sample:digits")
    return Samples(digits, digits, digits, "image", label, COLOURED)


def texts(label: str) -> Samples:
    sotu = Path("sample:sotu")
    return Samples(sotu, sotu, sotu, "text", label, None)


def options(*objectives: str, settings: tuple[str, ...] = ()) -> Options:
    return Options("data", Path("out"), objectives=objectives, settings=settings)


def test_every_objective_of_images_fits_coloured_ones_of_64_on_one_encoder() -> None:
    found, left_out = find_candidates(options(), images())
    assert set(left_out) == TEXT
    assert "no demo recipe for data of kind image" in left_out["mlm"]
    for candidate in found.values():
        encoder = candidate.values["encoder"]
        assert (encoder["name"], encoder["image_size"], encoder["patch_size"]) == ("vit", 64, 8)
        assert (encoder["num_channels"], encoder["image_mean"]) == (3, [0.8, 0.7, 0.6])
        assert not candidate.note, "none needs an encoder of its own"
    assert found["dino"].values["objective"]["small_size"] == 32, "half of the image, in whole patches"
    assert found["context_encoder"].values["objective"]["hole_size"] == 32


def test_what_reads_the_labels_themselves_is_left_out() -> None:
    found, left_out = find_candidates(options("mlm", "clm", "attribute"), texts("json.party"))
    assert "attribute party is json.party, by which the comparison judges" in left_out["attribute"]
    assert found["clm"].note.startswith("on its own encoder, gpt2 (encoder.name='modernbert': ")
    assert "attribute" in find_candidates(options("attribute"), texts("json.year"))[0]


def test_a_recipe_of_the_user_keeps_its_encoder_and_size(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "objective: {name: autoencoder, latent_size: 4}\ndata: {path: elsewhere}\ntrain: {epochs: 3}\n"
        "encoder: {name: mlp, image_size: 20, num_channels: 1, hidden_sizes: [8]}\n"
    )
    found, _ = find_candidates(options("mae", f"mine={recipe}", settings=("mine:seed=3",)), images())
    values = found["mine"].values
    assert values["encoder"] == {"name": "mlp", "image_size": 20, "num_channels": 1, "hidden_sizes": [8]}
    assert (values["data"]["path"], values["seed"]) == ("sample:digits", 3)


@pytest.mark.parametrize(
    ("asked", "settings", "told"),
    [
        (("maee",), (), "no objective is called 'maee'; did you mean 'mae'"),
        (("mae", "mae"), (), "mae is named twice"),
        (("../mae=mine.yaml",), (), "letters, digits, - and _"),
        (("all=mine.yaml",), (), "not all, finetune"),
        (("mae",), ("optimizer.lr=1",), "write name:key=value, e.g. mae:optimizer.lr=1e-3"),
        (("mae",), ("maa:optimizer.lr=1",), "no candidate is called 'maa'"),
        (("mlm",), (), "none of them can be compared on these data .mlm: has no demo recipe"),
        (("mae",), ("mae:optimizer.lrr=1",), "optimizer.lrr"),
    ],
)
def test_mistakes_are_told(asked: tuple[str, ...], settings: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        find_candidates(options(*asked, settings=settings), images())
