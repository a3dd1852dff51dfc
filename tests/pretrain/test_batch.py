"""A step's batch is made again as every rank saw it, from the settings and the data alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.config.load import load_config
from pretrain.config.show import to_dict
from pretrain.data import build_loader, first_of, open_sources
from pretrain.engine.base import World
from pretrain.run.batch import show_batch
from pretrain.run.replay import replay
from pretrain.run.run import build_objective, run
from tests.data_tools.small_data import write_images, write_tokens
from tests.processes import QUIET
from tests.tiny_run import SMALL, make_run

COMMON = ["train.steps=9", "train.global_batch_size=12", "train.micro_batch_size=3",
          *QUIET, "tracking.progress=false"]  # fmt: skip


def folder_of(config, folder):
    """A run's folder that holds its settings and nothing else."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return folder


def steps_of(config, ranks, step):
    """What the training's own loaders give each rank in a step, after all the steps before it."""
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    shares = []
    for rank in range(ranks):
        steps = iter(build_loader(config, objective, sources, World(rank, ranks)))
        shares.append([next(steps) for _ in range(step)][-1])
    return shares


CASES = {
    "pictures": ("mae_digits", [*SMALL, "train.batch_size_warmup=[[6, 2]]"], ".png"),
    "texts": ("mlm_sotu", [*SMALL[:3], "encoder.max_length=32"], ".txt"),
    "rows": ("clm_sotu", ["encoder.n_embd=16", "encoder.n_head=2", "encoder.vocab_size=200000", "data.path={tokens}",
                          "data.sequence_length=40"], None),
    "mixture": ("mae_digits", [*SMALL, "encoder.image_size=8", "encoder.patch_size=4",
                               "data.path={{a}: 0.7, {b}: 0.3}"], ".png"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "a")
    write_images(folder / "b", samples=30, per_shard=7)
    write_tokens(folder / "tokens", [5, 30, 12, 40, 8, 21, 3, 17] * 20, per_shard=20)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_every_rank_saw(data, tmp_path, case):
    recipe, own, look = CASES[case]
    places = {name: str(data / name) for name in ("a", "b", "tokens")}
    settings = [*COMMON, *own]
    for name, path in places.items():
        settings = [setting.replace(f"{{{name}}}", path) for setting in settings]
    config, _ = load_config(recipe, settings)
    folder = folder_of(config, tmp_path / "run")
    found = show_batch(folder, step=5, ranks=2)
    arrays = np.load(folder / "replay" / "step_5_batch.npz")
    seen = 0
    for rank, share in enumerate(steps_of(config, 2, 5)):
        assert found["position"] == share.position
        own_keys = [micro_batch["keys"] for micro_batch in found["ranks"][rank]["micro_batches"]]
        assert own_keys == share.keys
        for i, micro_batch in enumerate(share.micro_batches):
            for name, tensor in micro_batch.items():
                assert np.array_equal(arrays[f"rank_{rank}.{i}.{name}"], tensor.numpy())
                seen += 1
    assert seen == len(arrays.files)
    assert (folder / "replay" / f"step_5_batch{look}").is_file() if look else len(found["files"]) == 2
    assert json.loads((folder / "replay" / "step_5_batch.json").read_text()) == found


def test_shards_are_those_that_hold_the_samples(data, tmp_path):
    config, _ = load_config(
        "mae_digits",
        [*COMMON, *SMALL, "encoder.image_size=8", "encoder.patch_size=4", f"data.path={data / 'b'}"],
    )
    found = show_batch(folder_of(config, tmp_path / "run"), step=2)
    for micro_batch in found["ranks"][0]["micro_batches"]:
        for key, (shard,) in zip(micro_batch["keys"], micro_batch["shards"], strict=True):
            assert f"{key}.png".encode() in (data / "b" / shard).read_bytes()


def test_weights_of_a_mixture_are_those_of_then(data, tmp_path):
    mixed = [*COMMON, *SMALL, "encoder.image_size=8", "encoder.patch_size=4"]
    before, _ = load_config("mae_digits", [*mixed, f"data.path={{{data / 'a'}: 0.9, {data / 'b'}: 0.1}}"])
    now, _ = load_config("mae_digits", [*mixed, f"data.path={{{data / 'a'}: 0.1, {data / 'b'}: 0.9}}"])
    folder = folder_of(now, tmp_path / "run")
    sources = open_sources(before.data)
    loader = build_loader(before, build_objective(before, first_of(sources)), sources, World())
    loader.position = 5 * 12
    loader.set_weights(now.data.weights)
    checkpoint = folder / "checkpoints" / "step_00000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text(json.dumps({"step": 5, "stream": loader.state_dict()}))
    found = show_batch(folder, step=3)
    (share,) = steps_of(before, 1, 3)
    assert [m["keys"] for m in found["ranks"][0]["micro_batches"]] == share.keys


def test_a_run_that_was_trained_shows_the_batch_that_a_replay_trains_on(tmp_path, capsys):
    folder = tmp_path / "run"
    run(load_config("mae_digits", [*SMALL, *COMMON, "checkpoint.every=100", f"run_dir={folder}"])[0])
    (samples,) = replay(folder, 4, [])["samples"].values()
    assert main(["batch", str(folder), "--step", "4"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "replay" / "step_4_batch.json").read_text())
    keys = [key for micro_batch in found["ranks"][0]["micro_batches"] for key in micro_batch["keys"]]
    assert sorted(keys) == sorted(key for key, _ in samples)
    assert all(key in shown for key in keys[:3])
    assert "image uint8 [3, 1, 28, 28]" in shown


def test_what_cannot_be_shown_is_refused(data, tmp_path):
    folder = folder_of(load_config("mae_digits", [*SMALL, *COMMON])[0], tmp_path / "run")
    with pytest.raises(UserError, match="has steps 1 to 9"):
        show_batch(folder, 10)
    with pytest.raises(UserError, match="5 ranks cannot share it equally"):
        show_batch(folder, 1, ranks=5)
    with pytest.raises(UserError, match="--ranks -1: must be at least 1"):
        show_batch(folder, 1, ranks=-1)
    with pytest.raises(UserError, match="not a run folder"):
        show_batch(tmp_path, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "--step 0: the first step of a run is 1"),
        (["--step", "1", "--ranks", "0"], "--ranks 0: must be at least 1"),
    ],
)
def test_there_is_no_step_and_no_rank_before_the_first(arguments, message, tmp_path, capfd):
    make_run(tmp_path)
    assert main(["batch", str(tmp_path), *arguments]) == 2
    assert message in capfd.readouterr().err
