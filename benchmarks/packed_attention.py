"""How fast an encoder trains on packed rows, by dense mask and by document: python -m benchmarks.packed_attention

One process, a BERT encoder and the same rows, forward and backward, in turns in one run. On a GPU both compute in bf16
(torch's varlen kernel knows no other), on a CPU in fp32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.encoders.text.bert import BertEncoder, BertEncoderConfig
from pretrain.engine.blocks import set_attention
from pretrain.weights.model_folder import ModelFolder

VOCABULARY = 30_522


def packed_rows(rows: int, length: int, shortest: int, longest: int) -> dict[str, torch.Tensor]:
    """Rows filled with documents of lengths drawn evenly, the last one of a row cut off, as packing does."""
    generator = torch.Generator().manual_seed(0)
    document_ids = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros_like(document_ids)
    for row in range(rows):
        begin, number = 0, 0
        while begin < length:
            drawn = int(torch.randint(shortest, longest + 1, (), generator=generator))
            end, number = min(length, begin + drawn), number + 1
            document_ids[row, begin:end], positions[row, begin:end] = number, torch.arange(end - begin)
            begin = end
    tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
    return {"tokens": tokens, "document_ids": document_ids, "position_ids": positions}


def seconds(encoder: BertEncoder, batch: dict[str, torch.Tensor]) -> float:
    """One forward and backward pass."""
    device = batch["tokens"].device
    begin = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = encoder(batch).float().square().mean()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(encoder: BertEncoder, batch: dict[str, torch.Tensor], repeats: int) -> dict[str, float]:
    """The shortest time of each back end, for others may use the machine; the first pass of each warms up."""
    found: dict[str, list[float]] = {"sdpa": [], "varlen": []}
    for repeat in range(repeats + 1):
        for backend, measured in found.items():
            set_attention(encoder, backend)
            taken = seconds(encoder, batch)
            if repeat:
                measured.append(taken)
    return {backend: min(measured) for backend, measured in found.items()}


def line(lengths: tuple[int, int], batch: dict[str, torch.Tensor], found: dict[str, float]) -> str:
    tokens, documents = batch["tokens"].numel(), int(batch["document_ids"].amax(1).sum())
    dense, ragged = (tokens / found[backend] for backend in ("sdpa", "varlen"))
    return (
        f"| {lengths[0]}–{lengths[1]} | {documents} | {dense:,.0f} | {ragged:,.0f} | {ragged / dense:.2f} × |"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.packed_attention --output benchmarks/results/packed_attention.md",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=8, help="of the shortest length; fewer of longer ones")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="of rows, in tokens")
    parser.add_argument("--width", type=int, default=256, help="hidden size, 64 a head (default: 256)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--output", type=Path, help="write the table there too")
    a: Any = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = {"hidden_size": a.width, "num_hidden_layers": a.layers, "num_attention_heads": a.width // 64}
    config = BertEncoderConfig(
        vocab_size=VOCABULARY, max_position_embeddings=max(a.lengths), max_length=min(a.lengths), **sizes
    )
    encoder = BertEncoder(config, ModelFolder(Path())).to(device)  # type: ignore[arg-type]
    report = [
        f"# Training on packed rows: dense mask against varlen ({a.layers} layers of {a.width}, {name_of(device)})", "",
        "| row | documents of | in the batch | sdpa, dense mask: tokens/s | varlen: tokens/s | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for length in a.lengths:
        rows = max(1, a.rows * min(a.lengths) // length)  # the same number of tokens
        for lengths in ((16, 64), (64, 256), (length, length)):
            batch = {k: v.to(device) for k, v in packed_rows(rows, length, *lengths).items()}
            report.append(f"| {rows} × {length} " + line(lengths, batch, measure(encoder, batch, a.repeats)))
    report += ["", f"Forward and backward, the shortest of {a.repeats} each, in turns in one run.", ""]
    print("\n".join(report))
    if a.output:
        a.output.write_text("\n".join(report))
    return 0


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, bf16"
    return f"CPU, fp32, threads: {torch.get_num_threads()}"


if __name__ == "__main__":
    raise SystemExit(main())
