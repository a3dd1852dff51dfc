"""The model card of a release: what was trained on what, how, how well it did, and code that opens it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_tools.dataset import open_dataset
from pretrain.config.sections import Config
from pretrain.config.show import to_dict
from pretrain.tracking.environment import redact, redact_text

if TYPE_CHECKING:
    from data_tools.dataset import Dataset
    from pretrain.encoders.base import Encoder

POOLING_CODE = {
    ("vit", "mean"): "tokens[:, 1:].mean(1)  # the mean of the patch tokens; token 0 is the class token",
    ("vit", "cls"): "tokens[:, 0]  # the class token",
    (
        "text",
        "mean",
    ): "(tokens * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # mean over real tokens",
    ("text", "first"): "tokens[:, 0]  # the first token",
    ("text", "last"): "tokens[torch.arange(len(tokens)), mask.sum(1) - 1]  # the last real token",
    ("image", "mean"): "tokens.flatten(2).mean(2)  # the mean over places",
}
IMAGE_CODE = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "."  # where this file lies
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder{options}).eval()
image = Image.open("picture.png").convert("{mode}")
with torch.no_grad():
    tokens = model(**processor(image, return_tensors="pt")).last_hidden_state
features = {pooling}
"""
TEXT_CODE = """\
import torch
from transformers import AutoModel, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder{options}).eval()
inputs = tokenizer(["Fellow citizens"], return_tensors="pt")
inputs.pop("token_type_ids", None)
mask = inputs["attention_mask"]
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state
features = {pooling}
"""
LICENCE_CHARACTERS = 600
"""A licence file longer than that is a whole licence; its head names it."""
PIPELINES = {"image": "image-feature-extraction", "text": "feature-extraction"}


def write_model_card(
    folder: Path, run: Path, config: Config, encoder: Encoder, dataset: Dataset, step: int
) -> None:
    """Write `README.md` into a release folder."""
    recipe = redact(without_folders(to_dict(config) | {"run_dir": None}))
    title = f"{config.name}: {encoder.config.name} encoder, pretrained with {config.objective.name}"
    sections = [
        front_matter(config, encoder),
        f"# {title}",
        f"An encoder pretrained without labels by `{config.objective.name}` for {step:,} steps of "
        f"{config.train.global_batch_size:,} samples. It holds {parameters(encoder):,} parameters and gives one vector "
        f"of width {encoder.dim} a token.",
        "## Use\n\n```python\n" + loading_code(encoder) + "```" + use_notes(encoder),
        "## Data\n\n" + data_section(config, dataset),
        "## Results\n\n" + results_section(run),
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(recipe, sort_keys=False) + "```",
        "## Licence\n\nThe data's licence stands above. Whoever publishes these weights chooses theirs: set `license` "
        "in the first lines of this file.",
    ]
    (folder / "README.md").write_text(redact_text("\n\n".join(sections)) + "\n", encoding="utf-8")


def front_matter(config: Config, encoder: Encoder) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "license": "other",
        "license_name": "to-be-chosen",
        "pipeline_tag": PIPELINES.get(encoder.modality, "feature-extraction"),
        "tags": ["self-supervised", "masquerade", config.objective.name, encoder.config.name],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def parameters(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.model.parameters())


def loading_code(encoder: Encoder) -> str:
    """Code that gives the pooled features of one picture or text, with nothing but `transformers`."""
    from pretrain.weights.from_transformers import without_pooler

    options = "".join(f", {key}={value}" for key, value in without_pooler(type(encoder.model)).items())
    pooling = getattr(encoder.config, "pooling", "mean")
    code = POOLING_CODE.get((encoder.config.name, pooling)) or POOLING_CODE[(encoder.modality, pooling)]
    mode = "L" if getattr(encoder.config, "num_channels", 3) == 1 else "RGB"
    template = IMAGE_CODE if encoder.modality == "image" else TEXT_CODE
    return template.format(options=options, pooling=code, mode=mode)


def use_notes(encoder: Encoder) -> str:
    notes = "\n\nThe pooling above is the one that probes and fine-tuning used. There is no pooler head."
    if encoder.modality != "image":
        return notes
    return notes + (
        " The processor resizes the short side, crops the centre and normalises, exactly as in training for 8-bit "
        "pictures on the Pillow back-end (torchvision's resizing differs by a few grey levels); pictures of 16 bit are "
        "to be scaled to 8 bit first."
    )


def data_section(config: Config, dataset: Dataset) -> str:
    """What was trained on: `dataset`, and the others where several were mixed."""
    others = list(config.data.weights)[1:]
    sources = [dataset, *(open_dataset(path) for path in others)]
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


def results_section(run: Path) -> str:
    """Final loss, probes and fine-tuning as the run folder tells them."""
    records = read_records(run / "metrics.jsonl")
    lines = []
    kinds = (
        ("train", "Last training step"), ("validation", "Held-out samples"), ("probe", "Probes on the frozen encoder")
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
    """Whether a value of a metrics line says something of the model (its throughput and position do not)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and key not in (
        "step", "position", "epoch", "time", "samples_per_second", "data_wait", "lr", "grad_norm"
    )  # fmt: skip


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
