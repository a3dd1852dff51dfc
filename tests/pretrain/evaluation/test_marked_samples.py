"""What `verify` marked is left out of the held-out loss, which is over the same other samples as before."""

from __future__ import annotations

import numpy as np
import pytest

from data_tools.__main__ import main
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.evaluation.validation import Validation
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_objective
from tests.data_tools.small_data import write_images
from tests.tiny_run import SMALL


def test_the_held_out_loss_is_over_what_is_not_marked(tmp_path):
    write_images(tmp_path / "a", samples=4)
    write_images(tmp_path / "b", samples=9, per_shard=9)
    settings = [f"data.path={tmp_path / 'a'}", f"data.validation={tmp_path / 'b'}", "encoder.image_size=8",
                "encoder.patch_size=4", "train.global_batch_size=1"]  # fmt: skip
    config, _ = load_config("mae_digits", [*SMALL, *settings])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = DDPEngine(config.train, World())
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))

    def measure(position=None) -> float:
        validation = Validation(config, objective, sources)
        if position is not None:  # one sample alone
            validation.stream.readable = lambda _: np.array(position)
        with engine.evaluating(objective):
            return validation.measure(engine)["loss"]

    stream = Validation(config, objective, sources).stream
    keys = [stream.sample(position)["__key__"] for position in range(9)]
    alone = {key: measure([position]) for position, key in enumerate(keys)}
    assert measure() == pytest.approx(sum(alone.values()) / 9)
    shard = tmp_path / "b" / "000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[raw.index(b"IDAT") + 6] ^= 1  # of the first sample
    shard.write_bytes(raw)
    assert main(["verify", str(tmp_path / "b"), "--processes", "1"]) == 1
    del alone["000000"]
    assert measure() == pytest.approx(sum(alone.values()) / 8)
