"""The whole story on embedded real data: pretrain, fine-tune with few labels against scratch, release, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from launch.local import run_one, run_processes

Step = tuple[str, Callable[[], int]]

QUICK_PRETRAINING = ["train.steps=8", "tracking.picture_every=8", "tracking.log_every=4"]
QUICK_PROBES = ["probe.every=8", "probe.train_samples=200", "probe.test_samples=100"]
QUICK_FINETUNING = [
    "data.test_samples=200",
    "protocol.labels_per_class=[5]",
    "protocol.draws=1",
    "train.steps=3",
]
"""Every step of the story for a moment, to see that it runs here; the numbers mean nothing then."""


def image_steps(out: Path, processes: int | None, quick: bool) -> list[Step]:
    """Digits: a masked autoencoder sees four patches in ten; then 10 and 100 labels a class."""
    settings = ["mae_digits", f"run_dir={out}", *([*QUICK_PRETRAINING, *QUICK_PROBES] if quick else [])]
    return [
        (
            "Pretrain a masked autoencoder on 12,000 unlabelled digits",
            lambda: run_processes("pretrain", settings, processes),
        ),
        *finish("digits", out, processes, quick),
    ]


def text_steps(out: Path, processes: int | None, quick: bool) -> list[Step]:
    """State of the Union addresses: a masked language model reads them; then few labelled paragraphs."""
    settings = ["mlm_sotu", f"run_dir={out}", *(QUICK_PRETRAINING if quick else [])]
    return [
        (
            "Pretrain a masked language model on State of the Union addresses",
            lambda: run_processes("pretrain", settings, processes),
        ),
        *finish("sotu", out, processes, quick),
    ]


def finish(recipe: str, out: Path, processes: int | None, quick: bool) -> list[Step]:
    """What follows any pretraining run."""
    settings = [recipe, f"encoder={out}", f"out={out / 'finetune'}", *(QUICK_FINETUNING if quick else [])]
    return [
        (
            "Fine-tune it on few labels, against the same network from scratch",
            lambda: run_processes("finetune", settings, processes),
        ),
        ("Release the encoder", lambda: run_one("pretrain", ["release", str(out)])),
        ("Write the report", lambda: run_one("pretrain", ["report", str(out)])),
    ]


MODALITIES = {"image": image_steps, "text": text_steps}


def run_demo(modality: str, out: Path | None, processes: int | None, quick: bool = False) -> int:
    """Run the demo's steps in order; stop at the first that fails and return its exit status."""
    out = out or Path("runs") / f"demo_{modality}"
    started = time.perf_counter()
    steps = MODALITIES[modality](out, processes, quick)
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
