"""What only a GPU can show: every precision, compiled blocks and every attention back end train there, and say so."""

from __future__ import annotations

import pytest
import torch

from pretrain.tracking.metrics import read_metrics
from tests.cases import CASES
from tests.distributed.curves import build_trainer
from tests.processes import run

SETTINGS = ["train.steps=10", "train.global_batch_size=16", "tracking.log_every=1", "tracking.wandb.mode=disabled",
            "tracking.picture_every=5"]  # fmt: skip
WIDER = {
    "mae": ["encoder.hidden_size=64", "probe.every=5", "probe.train_samples=200", "probe.test_samples=100"],
    "mlm": ["encoder.hidden_size=64"],
    "clm": ["encoder.n_embd=64"],
}
"""fp8 wants multiples of 16, flash kernels heads of a multiple of 8."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and this machine shows none"),
]


@pytest.mark.parametrize("case", WIDER)
@pytest.mark.parametrize(
    "setting",
    ["train.precision=tf32", "train.precision=bf16", "train.precision=fp16", "train.precision=fp8",
     "train.compile=block", "train.compile=whole", "train.attention=varlen", "train.attention=flex",
     "train.activation_checkpointing=selective", "engine=fsdp", "engine=deepspeed", "optimizer.name=muon"],
)  # fmt: skip
def test_it_trains_on_a_gpu(tmp_path, case, setting):
    recipe, *own = CASES[case]
    precision = [] if "precision" in setting else ["train.precision=bf16"]
    run("pretrain", [recipe, *own, *WIDER[case], *SETTINGS, *precision, setting, f"run_dir={tmp_path}"])
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert len(lines) == 10
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 < lines[-1]["mfu"] < 1
    assert 0 < lines[-1]["peak_memory_gib"] < 16


@pytest.mark.parametrize("case", WIDER)
def test_bf16_follows_fp32(tmp_path, case):
    recipe, *own = CASES[case]
    found = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        run(
            "pretrain",
            [recipe, *own, *WIDER[case], *SETTINGS, f"train.precision={precision}", f"run_dir={folder}"],
        )
        found[precision] = [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.03)


@pytest.mark.parametrize("case", [*WIDER, "gan", "hard"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_no_step_waits_for_the_gpu(case, engine):
    """Two steps warm up (kernels are loaded, FSDP sets itself up); in the next ones torch raises at a wait."""
    overrides = [*WIDER.get(case, []), "train.precision=bf16", "train.ema_decay=0.9", f"engine={engine}"]
    trainer = build_trainer(case, overrides)
    steps = iter(trainer.loader)
    for _ in range(2):
        trainer.train_step(next(steps))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step(next(steps))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.engine.close()
