"""The whole story on embedded real data: pretrain, fine-tune with few labels against scratch, release, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from launch.local import run_one, run_processes

Step = tuple[str, Callable[[], int]]


def image_steps(out: Path, processes: int | None) -> list[Step]:
    """Digits: a masked autoencoder sees a quarter of each image; then 10 and 100 labels a class."""
    return [
        (
            "Pretrain a masked autoencoder on 12,000 unlabelled digits",
            lambda: run_processes("pretrain", ["mae_digits", f"run_dir={out}"], processes),
        ),
        *finish("digits", out, processes),
    ]


def text_steps(out: Path, processes: int | None) -> list[Step]:
    """State of the Union addresses: a tokenizer, a masked language model, then few labelled paragraphs."""
    tokenizer, tokens = out / "data" / "tokenizer", out / "data" / "tokens"
    return [
        (
            "Train a tokenizer on State of the Union addresses",
            lambda: unless_done(tokenizer, ["tokenizer", "sample:sotu", str(tokenizer)]),
        ),
        (
            "Tokenize them",
            lambda: unless_done(
                tokens, ["tokenize", "sample:sotu", str(tokens), "--tokenizer", str(tokenizer)]
            ),
        ),
        (
            "Pretrain a masked language model on them",
            lambda: run_processes(
                "pretrain", ["mlm_sotu", f"data.path={tokens}", f"run_dir={out}"], processes
            ),
        ),
        *finish("sotu", out, processes),
    ]


def finish(recipe: str, out: Path, processes: int | None) -> list[Step]:
    """What follows any pretraining run."""
    return [
        (
            "Fine-tune it on few labels, against the same network from scratch",
            lambda: run_processes(
                "finetune", [recipe, f"encoder={out}", f"out={out / 'finetune'}"], processes
            ),
        ),
        ("Release the encoder", lambda: run_one("pretrain", ["release", str(out)])),
        ("Write the report", lambda: run_one("pretrain", ["report", str(out)])),
    ]


MODALITIES = {"image": image_steps, "text": text_steps}


def run_demo(modality: str, out: Path | None, processes: int | None) -> int:
    """Run the demo's steps in order; stop at the first that fails and return its exit status."""
    out = out or Path("runs") / f"demo_{modality}"
    started = time.perf_counter()
    steps = MODALITIES[modality](out, processes)
    for i, (title, step) in enumerate(steps, 1):
        print(f"\n[{i}/{len(steps)}] {title}", flush=True)
        status = step()
        if status:
            print(f"\nThe demo stopped at step {i}, exit status {status}. Run it again to go on from there.")
            return status
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"\nDone in {minutes} min {seconds:02d} s.")
    print(f"  encoder  {out / 'release'}   (transformers.AutoModel.from_pretrained opens it)")
    print(f"  report   {out / 'report.html'}   (open it in a browser)")
    return 0


def unless_done(folder: Path, command: list[str]) -> int:
    """Run a `data_tools` command that makes `folder`, unless it stands there complete: the demo can be started again."""
    complete = (folder / "manifest.json").exists() or (folder / "tokenizer.json").exists()
    return 0 if complete else run_one("data_tools", command)
