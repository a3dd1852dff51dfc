"""A rank of FSDP starts with its shards and a tensor in hand, and what it holds are one process's weights.

`benchmarks/results/start_memory.md` has the same for 1.5 billion parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.start_memory import compare, fingerprint_whole
from pretrain.checkpoint.weights import read_weights, saved_shapes
from pretrain.config.load import load_config
from tests.distributed.test_engines import assert_same, curves
from tests.processes import QUIET, run
from tests.tiny_run import SMALL, make_run

pytestmark = pytest.mark.slow
RANKS = 4
OF_127_MILLION = [
    "encoder.n_embd=768",
    "encoder.n_layer=18",
    "encoder.n_head=12",
    "train.global_batch_size=8",
]


def test_a_rank_starts_within_1_3_times_its_shards_and_has_one_process_s_weights(tmp_path):
    run("benchmarks.start_memory", [str(tmp_path), *OF_127_MILLION], RANKS)
    config, _ = load_config("clm_sotu", OF_127_MILLION)
    (tmp_path / "whole.json").write_text(json.dumps(fingerprint_whole(config, RANKS)))
    found = compare(tmp_path)
    assert found["ranks"] == RANKS
    assert found["parameters"] > 100e6
    assert found["compared"] > 90
    assert found["different"] == []
    assert found["ratio"] < 1.3


def newest_roles(run_dir: Path) -> dict[str, torch.Tensor]:
    """All weights of a run's newest checkpoint, averaged where it keeps an average."""
    checkpoint = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in saved_shapes(checkpoint).items():
        role, _, parameter = name.partition(".")
        tensors.setdefault(role, {})[parameter] = torch.empty(shape)
    read_weights(checkpoint, tensors)
    return {f"{role}.{name}": tensor for role, own in tensors.items() for name, tensor in own.items()}


def test_weights_of_another_run_go_into_shards_and_into_their_average(tmp_path):
    make_run(tmp_path / "first")
    settings = [
        "optimizer.lr=1e-9",
        "train.steps=1",
        "train.ema_decay=0.9",
        "train.global_batch_size=4",
        *QUIET,
    ]
    run(
        "pretrain",
        ["mae_digits", *SMALL, *settings, "engine=fsdp", f"init_from={tmp_path / 'first'}",
         f"run_dir={tmp_path / 'second'}"],
        2,
    )  # fmt: skip
    first, second = newest_roles(tmp_path / "first"), newest_roles(tmp_path / "second")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-7, msg=name)


CASES = tuple(f"{case}/2" for case in ("mlm", "own_head", "hard"))
APART = "fsdp.shard_apart_from=0"
"""Every embedding and head by itself, however small."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    return curves(tmp_path_factory.mktemp("alone"), 1, CASES, [])


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [(2, [APART]), (4, ["fsdp.hsdp=2", APART, "fsdp.accumulate_unsharded=true"])],
    ids=["apart", "apart, replicated, whole gradients"],
)
def test_what_is_reduced_when_and_with_what_changes_no_curve(ranks, settings, alone, tmp_path):
    assert_same(curves(tmp_path, ranks, CASES, ["engine=fsdp", *settings]), alone)
