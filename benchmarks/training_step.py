"""A whole training step beside that of a plain `transformers` loop, with MFU: python -m benchmarks.training_step

GPT-2 124M (next token), ViT-L/16 (masked autoencoder) and ModernBERT-base (masked language model), at full size. Ours
is what a run does (engine, objective, guards, clipping, fused AdamW); theirs is the published model class with its own
loss, autocast, clipping and fused AdamW. Both take steps in turns in one run, on the same batch, in the same precision.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_tools.dataset.open import open_dataset
from pretrain.config.sections import TrainConfig
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.encoders.text.gpt2 import GPT2Encoder, GPT2EncoderConfig
from pretrain.encoders.text.modernbert import ModernBertEncoder, ModernBertEncoderConfig
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.engine.precision import AUTOCAST
from pretrain.metering.flops import step_flops
from pretrain.metering.peak import device_peak
from pretrain.objectives.base import Batch, Objective, stack
from pretrain.objectives.clm import CLM, CLMConfig
from pretrain.objectives.mae import MAE, MAEConfig
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.ops.linear_cross_entropy import IGNORE
from pretrain.optim.build import build_optimizer
from pretrain.optim.config import OptimizerConfig

GPT2_VOCABULARY, MODERNBERT_VOCABULARY = 50_304, 50_368
Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """One model of both kinds, and a batch of each."""

    name: str
    objective: Objective
    batch: Batch
    model: nn.Module
    inputs: dict[str, torch.Tensor]


def examples(objective: Objective, size: int, length: int) -> Batch:
    """Rows of one document each, of random tokens."""
    rows = [np.random.default_rng(i).integers(5, 4000, length) for i in range(size)]
    samples = [{"__key__": str(i), "tokens": row} for i, row in enumerate(rows)]
    return stack([objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])


def gpt2(size: int, length: int) -> Workload:
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2EncoderConfig(vocab_size=GPT2_VOCABULARY, max_length=length)
    objective = CLM(CLMConfig(), GPT2Encoder(settings), dataset=None)  # type: ignore[arg-type]
    batch = examples(objective, size, length)
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=GPT2_VOCABULARY, **dropouts))
    tokens = batch["tokens"].long()
    return Workload(
        f"GPT-2 124M, {size} × {length} tokens",
        objective,
        batch,
        theirs,
        {"input_ids": tokens, "labels": tokens},
    )


def modernbert(size: int, length: int) -> Workload:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    settings = ModernBertEncoderConfig(vocab_size=MODERNBERT_VOCABULARY, max_length=length)
    dataset = open_dataset("sample:sotu")
    objective = MLM(MLMConfig(), ModernBertEncoder(settings, dataset), dataset)
    batch = examples(objective, size, length)
    theirs = ModernBertForMaskedLM(ModernBertConfig(vocab_size=MODERNBERT_VOCABULARY))
    labels = torch.full_like(batch["tokens"].long(), IGNORE).scatter(1, batch["masked"], batch["target"])
    inputs = {"input_ids": batch["tokens"].long(), "labels": labels}
    return Workload(f"ModernBERT-base, {size} × {length} tokens", objective, batch, theirs, inputs)


def vit_mae(size: int, _length: int) -> Workload:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    objective = MAE(MAEConfig(), ViTEncoder(ViTEncoderConfig(**large)), dataset=None)  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 255, (size, 224, 224, 3), dtype=np.uint8)
    samples = [{"__key__": str(i), "image": pixels} for i, pixels in enumerate(image)]
    batch = stack([objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)])
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(**large, intermediate_size=4096, norm_pix_loss=True, hidden_dropout_prob=0.0)
    )
    pixels = objective.encoder.pixels(batch["image"])
    return Workload(f"ViT-L/16 MAE, {size} images", objective, batch, theirs, {"pixel_values": pixels})


WORKLOADS = {"gpt2": gpt2, "vit_mae": vit_mae, "modernbert": modernbert}
BATCHES = {
    "cuda": {"gpt2": 16, "vit_mae": 128, "modernbert": 32},
    "cpu": {"gpt2": 1, "vit_mae": 4, "modernbert": 1},
}
LENGTHS = {"gpt2": 1024, "vit_mae": 0, "modernbert": 512}


def our_step(work: Workload, train: TrainConfig) -> Step:
    engine = DDPEngine(train, World())
    engine.prepare(work.objective, lambda _, roles: build_optimizer(roles, OptimizerConfig(lr=1e-4)))
    (phase,) = work.objective.phases()
    scale = 1 / work.objective.count(phase, work.batch)
    batch = {n: v.to(engine.device) if isinstance(v, torch.Tensor) else v for n, v in work.batch.items()}

    def step() -> None:
        engine.backward(phase, batch, scale, last=True)
        engine.step(phase, 1.0, 1.0)

    return step


def their_step(work: Workload, train: TrainConfig, device: str) -> Step:
    model = work.model.to(device).train()
    forward: Any = torch.compile(model) if train.compile != "none" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = {name: value.to(device) for name, value in work.inputs.items()}
    narrow = AUTOCAST.get(train.precision)

    def step() -> None:
        with torch.autocast(device, narrow or torch.bfloat16, enabled=narrow is not None):
            loss = forward(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Step, number: int) -> float:
    """Of one step, over `number` of them."""
    synchronize()
    begin = time.perf_counter()
    for _ in range(number):
        step()
    synchronize()
    return (time.perf_counter() - begin) / number


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(work: Workload, train: TrainConfig, device: str, rounds: int, number: int) -> str:
    """A row of the table."""
    flops = step_flops(work.objective, work.batch)
    assert flops is not None
    steps = {"ours": our_step(work, train), "theirs": their_step(work, train, device)}
    for step in steps.values():
        seconds(step, 3 if device == "cuda" else 1)  # compiles, and allocates what the optimizer keeps
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, number))
    ours, theirs = (statistics.median(times[name]) for name in ("ours", "theirs"))
    peak = device_peak(torch.device(device), train.precision, None)
    busy = [
        f"{flops / s / 1e12:.2f}" + (f" ({100 * flops / s / peak:.1f} %)" if peak else "")
        for s in (ours, theirs)
    ]
    cells = [work.name, f"{1000 * ours:,.1f}", f"{1000 * theirs:,.1f}", f"{theirs / ours:.2f} ×", *busy]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.training_step --precision bf16 --compile block --output step.md",
    )  # fmt: skip
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    parser.add_argument(
        "--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all"
    )
    parser.add_argument(
        "--precision", default="bf16" if cuda else "fp32", choices=("fp32", "tf32", "bf16", "fp8")
    )
    parser.add_argument("--compile", default="none", choices=("none", "block", "whole"))
    parser.add_argument("--attention", help="of ours, as train.attention; default: the encoder's own choice")
    parser.add_argument("--batch", type=int, help="samples a step; default: what suits the device")
    parser.add_argument("--rounds", type=int, default=5, help="of each in turns")
    parser.add_argument("--steps", type=int, default=10 if cuda else 1, help="in a round")
    parser.add_argument("--output", type=Path, help="write the table there too")
    arguments = parser.parse_args(argv)
    train = TrainConfig(
        precision=arguments.precision, compile=arguments.compile, attention=arguments.attention
    )
    name = torch.cuda.get_device_name() if cuda else f"a CPU of {os.cpu_count()} cores"
    settings = (
        f"{arguments.precision}, compile={arguments.compile}, attention={arguments.attention or 'default'}"
    )
    lines = [f"# A training step on {name}, beside a plain `transformers` loop", "",
             "| model | ours, ms | transformers, ms | faster by | ours, TFLOP/s (MFU) | transformers, TFLOP/s (MFU) |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    print("\n".join(lines), flush=True)
    for model in arguments.models:
        torch.manual_seed(0)
        work = WORKLOADS[model](arguments.batch or BATCHES[device][model], LENGTHS[model])
        lines.append(measure(work, train, device, arguments.rounds, arguments.steps))
        print(lines[-1], flush=True)
        del work
        gc.collect()
    lines += ["", f"{settings}; torch {torch.__version__}. Medians of {arguments.rounds} rounds in turns in one run.",
              "Model FLOPs as runs count them (forward and backward, nothing recomputed), the same for both.",
              ""]  # fmt: skip
    print("\n".join(lines[-3:]))
    if arguments.output:
        arguments.output.write_text("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
