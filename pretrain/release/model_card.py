"""The model card of a release: what was trained on what, how, how well it did, and code that opens it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_tools.dataset.open import open_dataset
from pretrain.config.sections import Config
from pretrain.config.show import to_dict
from pretrain.metering.meter import CLOCKED
from pretrain.tracking.environment import redact, redact_text

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset
    from pretrain.encoders.base import Encoder
    from pretrain.objectives.base import Objective

LICENCE_CHARACTERS = 600
"""A licence file longer than that is a whole licence; its head names it."""
RUNS_OWN = (
    "step", "position", "epoch", "time", "lr", "grad_norm", "skipped_updates", "damaged_samples", *CLOCKED,
)  # fmt: skip
"""Values of a metrics line that tell of the run and its machines, not of the model."""


def write_model_card(
    folder: Path, run: Path, objective: Objective, config: Config, step: int, averaged: tuple[int, ...] = ()
) -> None:
    """Write `README.md` into the release folder of the encoder that `objective` trained.

    Args:
        averaged: the steps whose weights it is the mean of, where it is one.
    """
    encoder, dataset = objective.product_encoder, objective.dataset
    recipe = redact(without_folders(to_dict(config) | {"run_dir": None}))
    title = f"{config.name}: {encoder.config.name} encoder, pretrained with {config.objective.name}"
    sections = [
        front_matter(config, encoder),
        f"# {title}",
        f"An encoder pretrained {objective.describe_supervision()} by `{config.objective.name}` for {step:,} steps of "
        f"{config.train.global_batch_size:,} samples. It holds {parameters(encoder):,} parameters and gives one vector "
        f"of width {encoder.dim} a token.",
        *average_section(averaged),
        *companions_section(objective),
        "## Use\n\n```python\n" + encoder.card_code() + "```\n\n" + use_notes(encoder),
        "## Data\n\n" + data_section(config, dataset),
        "## Results\n\n" + results_section(run, step),
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(recipe, sort_keys=False) + "```",
        "## Licence\n\nThe data's licence stands above. Whoever publishes these weights chooses theirs: set `license` "
        "in the first lines of this file.",
    ]
    (folder / "README.md").write_text(redact_text("\n\n".join(sections)) + "\n", encoding="utf-8")


def companions_section(objective: Objective) -> list[str]:
    """A paragraph that names the models beside the encoder, where there are any."""
    named = [
        f"`{name}/` (`{type(companion.model).__name__}`)"
        for name, companion in objective.companions().items()
    ]
    return [f"Beside it lie, whole with their heads: {', '.join(named)}."] if named else []


def average_section(steps: tuple[int, ...]) -> list[str]:
    """A paragraph that says of which steps the weights are the mean, where they are one."""
    told = ", ".join(f"{step:,}" for step in steps)
    return [
        f"Its weights are the mean of {len(steps)} checkpoints, those of steps {told}. The results below are of the "
        "run's own weights, not of this mean."
    ] if steps else []  # fmt: skip


def front_matter(config: Config, encoder: Encoder) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "license": "other",
        "license_name": "to-be-chosen",
        "pipeline_tag": encoder.pipeline,
        "tags": ["self-supervised", "masquerade", config.objective.name, encoder.config.name],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def parameters(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.model.parameters())


def use_notes(encoder: Encoder) -> str:
    notes = "The pooling above is the one that probes and fine-tuning used. There is no pooler head."
    return " ".join(filter(None, (notes, encoder.card_notes)))


def data_section(config: Config, dataset: Dataset) -> str:
    """What was trained on: `dataset`, and the others where several were mixed."""
    others = list(config.data.paths.values())[1:]
    fetching = config.data.storage.fetching
    sources = [dataset, *(open_dataset(path, fetching=fetching) for path in others)]
    sections = []
    for (path, weight), source in zip(config.data.weights.items(), sources, strict=True):
        share = f", weight {weight:g}" if others else ""
        about = source.manifest.about
        rows: dict[str, Any] = {
            "data set": f"`{Path(path).name}`, {len(source):,} samples{share}",
            "fingerprint": f"`{source.fingerprint}`",
            "licence": licence(source),
            **{key: about[key] for key in ("source", "description", "attribution") if key in about},
        }
        sections.append("\n".join(f"- {key}: {value}" for key, value in rows.items()))
    return "\n\n".join(sections)


def licence(dataset: Dataset) -> str:
    """What the manifest says of it, or the text of the licence file beside the shards."""
    about = dataset.manifest.about
    if stated := about.get("licence") or about.get("license"):
        return str(stated)
    files = sorted(dataset.folder.glob("LICEN[CS]E*")) if dataset.folder else []
    text = " ".join(files[0].read_text(encoding="utf-8", errors="replace").split()) if files else ""
    return text[:LICENCE_CHARACTERS] or "not stated by the data set"


def results_section(run: Path, step: int) -> str:
    """Loss and probes up to the released step, and fine-tuning, as the run folder tells them."""
    records = [r for r in read_records(run / "metrics.jsonl") if r.get("step", 0) <= step]
    lines = []
    kinds = (
        ("train", "Last training step"), ("validation", "Held-out samples"), ("probe", "Probes on the frozen encoder"),
        ("representation", "Features without labels"),
    )  # fmt: skip
    for kind, title in kinds:
        found = [r for r in records if r.get("kind") == kind]
        if found:
            values = {k: v for k, v in found[-1].items() if shown(k, v)}
            lines.append(
                f"{title} ({found[-1]['step']:,}): " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())
            )
    table = finetune_table(run / "finetune" / "finetune.json")
    return "\n\n".join([*lines, *table]) or "None recorded."


def shown(key: str, value: Any) -> bool:
    """Whether a value of a metrics line says something of the model; a phase's own are called `phase/key`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and key.rpartition("/")[2] not in RUNS_OWN


def finetune_table(path: Path) -> list[str]:
    """The low-label table of `finetune.json` as Markdown, or nothing."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"Fine-tuning ({result['task']}, {result['metric']} on {result.get('test_samples', '?')} test samples):",
        "",
        "| labels a class | method | mean | sd | draws |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['labels_per_class'] or 'all'} | {row['method']} | {row['mean']:.3f} | {row['sd']:.3f} "
            f"| {len(row['draws'])} |"
        )
    return ["\n".join(lines)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off by a crash is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def without_folders(value: Any) -> Any:
    """Settings with absolute paths cut down to their last name: where things lay on a machine is nobody's business."""
    if isinstance(value, dict):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
