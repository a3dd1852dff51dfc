"""What holds for every objective and encoder, a function each: see `tests.cases`. Engines have `test_engines`.

Two ranks start twice, for all cases together: they train each whole, once more to the middle, and from there on.
"""

from __future__ import annotations

import hashlib

import pytest
from transformers import AutoModel

from pretrain.checkpoint.folder import complete
from pretrain.release.release import load_run_encoder, release_run
from tests.cases import LEARNERS
from tests.distributed.curves import curve
from tests.processes import losses, run

STEPS, SAVED_AT = 8, 4
SETTINGS = [f"train.steps={STEPS}", f"checkpoint.every={SAVED_AT}", f"tracking.picture_every={STEPS}",
            "train.deterministic=true"]  # fmt: skip
NO_PICTURE = ("attribute", "attribute_words", "swin", "resnet")
"""Cases of attributes, which have none."""
NO_RELEASE = ("autoencoder_mlp",)
"""`transformers` has no such model."""
FALLING = {
    "gan": "discriminator/loss",
    "bigan": "discriminator/loss",
    "context_encoder": "generator/loss",
}
"""Of two players, whose loss falls from the first steps on."""
FALLS_AS = {"dino": "dino_sinkhorn"}
"""With centring, a loss begins at almost nothing (all images have the same answer) and rises before it falls."""
pytestmark = pytest.mark.slow


def checkpoint_digests(folder):
    """Of the tensors' files in the last checkpoint."""
    files = sorted(complete(folder / "checkpoints")[-1].glob("*.distcp"))
    assert len(files) == 2
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of all cases: `whole` runs, and the same `again`, which stop in the middle and go on in other processes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "again")}
    cases = ",".join(LEARNERS)
    run("tests.distributed.chain", [f"{folders['whole']},{folders['again']}@{SAVED_AT}", cases, *SETTINGS], 2)
    run("tests.distributed.chain", [str(folders["again"]), cases, *SETTINGS], 2)
    return folders


@pytest.mark.parametrize("case", LEARNERS)
def test_the_loss_falls_on_real_data(case):
    rows = curve(FALLS_AS.get(case, case), ["train.steps=20"])
    name = FALLING.get(case, "loss")
    assert sum(row[name] for row in rows[-4:]) / 4 < 0.98 * rows[0][name]


@pytest.mark.parametrize("case", LEARNERS)
def test_a_run_that_stops_and_goes_on_has_the_bits_of_one_that_does_not(runs, case):
    folder = runs["again"] / case
    assert f'"kind": "resume", "step": {SAVED_AT}' in (folder / "metrics.jsonl").read_text()
    assert losses(folder) == losses(runs["whole"] / case)
    assert checkpoint_digests(folder) == checkpoint_digests(runs["whole"] / case)


@pytest.mark.parametrize("case", LEARNERS)
def test_a_run_draws_its_picture(runs, case):
    pictures = list((runs["whole"] / case / "pictures").glob("*"))
    assert bool(pictures) == (case not in NO_PICTURE)


@pytest.mark.parametrize("case", [case for case in LEARNERS if case not in NO_RELEASE])
def test_transformers_opens_the_release_with_the_weights_that_were_trained(runs, case, tmp_path):
    folder = runs["whole"] / case
    opened = AutoModel.from_pretrained(release_run(folder, tmp_path / "release")).state_dict()
    for name, value in load_run_encoder(folder).encoder.model.state_dict().items():
        assert value.equal(opened[name]), name
