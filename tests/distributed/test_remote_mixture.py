"""A mixture of remote packed data on two ranks: the losses of the local one, and on by a fresh signature."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.samples import sample_folder
from tests.processes import QUIET, losses, run

sys.path.insert(0, str(Path(__file__).parents[1] / "data_tools"))
from small_data import npy
from store_server import store_server

SETTINGS = [
    "gpt2_124m", "encoder={n_embd: 16, n_layer: 1, n_head: 2}", "data.sequence_length=64", "train.global_batch_size=8",
    "train.steps=6", "schedule.warmup_steps=2", "train.precision=fp32", "checkpoint.every=3", "tracking.log_every=1",
    *QUIET,
]  # fmt: skip


def write_documents(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with ShardWriter(folder, max_samples=50, with_length=True) as writer:
        for i in range(150):
            tokens = generator.integers(0, 500, int(generator.integers(8, 150))).astype(np.uint16)
            writer.write(f"{i:04d}", {"tokens.npy": npy(tokens)}, len(tokens))
        shutil.copytree(sample_folder("sotu") / "tokenizer", folder / "tokenizer")
        finish_dataset(writer, {"tokenizer": "tokenizer"})


def train(base: str, folder: Path, signature: str = "") -> dict[int, tuple[float, float]]:
    """(loss, norm of the gradient) of each step of two ranks."""
    path = f"data.path={{'{base}/a{signature}': 2, '{base}/b{signature}': 1}}"
    done = run("pretrain", [*SETTINGS, path, f"run_dir={folder}"], 2)
    assert "s3cr3t" not in done.stdout + done.stderr
    return {step: (line["loss"], line["grad_norm"]) for step, line in losses(folder).items()}


@pytest.mark.slow
def test_two_ranks_learn_the_same_from_a_remote_mixture_and_go_on_with_a_fresh_signature(
    tmp_path, monkeypatch
):
    for seed, name in enumerate("ab"):
        write_documents(tmp_path / "data" / name, seed)
    expected = train(str(tmp_path / "data"), tmp_path / "local")
    with store_server(tmp_path / "data") as (url, server):
        for number in range(2):
            server.signature, server.requests = f"X-Amz-Signature=s3cr3t{number}", []
            monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / f"cache{number}"))
            assert train(url, tmp_path / "remote", f"?{server.signature}") == expected
            assert any(path.startswith("/b/000001.tar?") for _, path, _ in server.requests)
            # as if it had been stopped before; what comes then is fetched anew, by the next signature
            shutil.rmtree(tmp_path / "remote" / "checkpoints" / "step_00000006")
    folders = [tmp_path / name for name in ("remote", "cache0", "cache1")]
    kept = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"s3cr3t" in path.read_bytes()]
