"""A masked autoencoder fed with JPEGs, as a run does it: python -m benchmarks.stream_fed_mae

Shards of 500 × 375 JPEGs, decoded and cropped by the loader's workers while the device trains: images a second, and
the share of the time for which the device waited for data. On a GPU ViT-B/16 and ViT-L/16 in bf16, blocks compiled; on
a CPU a small one, which only shows that it works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.stream import photograph
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.tracking.metrics import read_metrics

MODELS: dict[str, tuple[int, list[str]]] = {
    "ViT-B/16": (256, ["encoder.hidden_size=768", "encoder.num_hidden_layers=12", "encoder.num_attention_heads=12"]),
    "ViT-L/16": (128, ["encoder.hidden_size=1024", "encoder.num_hidden_layers=24", "encoder.num_attention_heads=16"]),
    "ViT of width 64": (8, ["encoder.hidden_size=64", "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2",
                            "objective.decoder_hidden_size=32", "objective.decoder_num_hidden_layers=1",
                            "objective.decoder_num_attention_heads=2"]),
}  # fmt: skip
"""By name: images a step, and sizes. The decoder of the large ones is MAE's own, 512 × 8."""
DECODER = ["objective.decoder_hidden_size=512", "objective.decoder_num_hidden_layers=8",
           "objective.decoder_num_attention_heads=16"]  # fmt: skip


def write_shards(folder: Path, images: int) -> None:
    """Some hundred different pictures, over and over."""
    pictures = [photograph(i) for i in range(min(images, 300))]
    writer = ShardWriter(folder, max_samples=500)
    for i in range(images):
        writer.write(f"{i:06d}", {"jpg": pictures[i % len(pictures)]})
    finish_dataset(writer)


def train(model: str, shards: Path, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The logged lines of a run, without the first ones, which compile and fill the read-ahead."""
    batch, sizes = MODELS[model]
    decoder = [] if model.endswith("64") else DECODER
    precision = ["train.precision=bf16", "train.compile=block"] if torch.cuda.is_available() else [
        "train.precision=fp32"]  # fmt: skip
    settings = [f"data.path={shards}", f"data.workers={arguments.workers}", f"run_dir={folder}", "train.epochs=null",
                f"train.steps={arguments.steps}", f"train.global_batch_size={batch}", "tracking.log_every=5",
                "tracking.picture_every=0", "tracking.wandb.mode=disabled", "checkpoint.every=1000000",
                "checkpoint.permanent_every=0"]  # fmt: skip
    words = [sys.executable, "-m", "pretrain", "mae_images", *sizes, *decoder, *precision, *settings]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in read_metrics(folder) if line["kind"] == "train"]
    return lines[len(lines) // 3 :]


def main(argv: list[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.stream_fed_mae --workers 14 --output stream_fed_mae.md",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS)[:2] if cuda else list(MODELS)[2:]
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that decode")
    parser.add_argument("--images", type=int, default=6000 if cuda else 200, help="in the shards")
    parser.add_argument("--steps", type=int, default=60 if cuda else 15)
    parser.add_argument("--output", type=Path, help="write the table there too")
    arguments = parser.parse_args(argv)
    device = torch.cuda.get_device_name() if cuda else f"a CPU of {os.cpu_count()} cores"
    lines = [f"# A masked autoencoder fed with JPEGs on {device}", "",
             "| model, images a step | images/s | waiting for data | MFU | memory, GiB |",
             "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        write_shards(Path(scratch) / "shards", arguments.images)
        for i, model in enumerate(arguments.models):
            found = train(model, Path(scratch) / "shards", Path(scratch) / f"run{i}", arguments)
            speed, wait, memory = (
                statistics.median(line[name] for line in found)
                for name in ("samples_per_second", "data_wait", "peak_memory_gib")
            )
            mfu = statistics.median(line["mfu"] for line in found) if "mfu" in found[0] else None
            busy = "–" if mfu is None else f"{100 * mfu:.1f} %"
            lines.append(
                f"| {model}, {MODELS[model][0]} | {speed:,.1f} | {100 * wait:.1f} % | {busy} | {memory:.1f} |"
            )
    lines += ["", f"{arguments.workers} decoding threads, 224² crops, torch {torch.__version__}; medians of the lines "
              "of one run each, its first third left out.", ""]  # fmt: skip
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
