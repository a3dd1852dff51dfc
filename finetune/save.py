"""A fine-tuned classifier as a folder: one that `transformers` opens whole where its class computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from finetune.tasks.classification import Classification
from pretrain.encoders.base import Encoder
from pretrain.objectives.base import Batch
from pretrain.release.release import choose_samples, record_settings, write_whole
from pretrain.weights.from_transformers import load_encoder
from pretrain.weights.model_folder import no_progress_bars

TOLERANCE = 1e-4
HEAD_NAMES = ("classifier", "score")


def save_classifier(task: Classification, folder: Path, result: dict[str, Any]) -> str:
    """Write the classifier, opened again and compared before it gets its name; return a line that says what it is.

    `transformers` fixes the pooling of each of its classifiers (a ViT's reads the class token). Where that is not how
    this one was trained, the folder holds the encoder and the head apart, and its card says how to join them.
    """
    no_progress_bars()
    encoder = task.encoder.cpu().eval()
    for role in task.roles.values():
        role.cpu().eval()
    batch = encoder.collate([encoder.view(s) for s in choose_samples(encoder, task.dataset.dataset)])
    with torch.no_grad():
        expected = task.logits(batch)  # (B, classes)
    whole: Any = as_transformers(task, encoder, batch, expected)

    def write(partial: Path) -> None:
        if whole is not None:
            encoder.save(partial)  # the processor or tokenizer
            (partial / "config.json").unlink()
            (partial / "model.safetensors").unlink()
            whole.save_pretrained(partial)
            logits = reopened_logits(partial, task, batch)
        else:
            encoder.save(partial)
            record_settings(encoder, partial)
            save_file(dict(task.roles["head"].state_dict()), partial / "head.safetensors")
            logits = joined_logits(partial, batch)
        difference = (logits - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"the saved classifier differs from the trained one by {difference:.2g}")
        (partial / "README.md").write_text(card(task, encoder, result, whole is not None), encoding="utf-8")

    write_whole(folder, write)
    if whole is not None:
        return f"classifier: {folder} (transformers.{task.auto_model} opens it)"
    return (
        f"classifier: {folder} (encoder and head apart, since this family's classifier in transformers pools in "
        "another way; its README.md shows how to join them)"
    )


def as_transformers(
    task: Classification, encoder: Encoder, batch: Batch, expected: torch.Tensor
) -> nn.Module | None:
    """The classifier as one model of `transformers`; None where its class computes other logits for `batch`."""
    import transformers

    head: Any = task.roles["head"]
    trained: Any = encoder.model
    names = [str(label) for label in task.dataset.classes]
    config = type(trained.config).from_dict(trained.config.to_dict())
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.num_labels = len(names)
    if not isinstance(head.norm, nn.Identity):
        return None
    try:
        model = getattr(transformers, task.auto_model).from_config(config)
    except ValueError:
        return None  # the family has no such class
    linear = next((getattr(model, name) for name in HEAD_NAMES if hasattr(model, name)), None)
    if (
        not isinstance(linear, nn.Linear)
        or linear.weight.shape != head.linear.weight.shape
        or linear.bias is None
    ):
        return None
    report = model.base_model.load_state_dict(trained.state_dict(), strict=False)
    if report.missing_keys or report.unexpected_keys:
        return None
    linear.load_state_dict(head.linear.state_dict())
    with torch.no_grad():
        logits = model.eval()(**encoder.plain_inputs(batch)).logits  # (B, classes)
    return model if torch.allclose(logits, expected, atol=TOLERANCE) else None


@torch.no_grad()
def reopened_logits(folder: Path, task: Classification, batch: Batch) -> torch.Tensor:
    """Logits (B, classes) as a user of plain `transformers` gets them."""
    import transformers

    model = getattr(transformers, task.auto_model).from_pretrained(folder, local_files_only=True).eval()
    logits: torch.Tensor = model(**task.encoder.plain_inputs(batch)).logits
    return logits


@torch.no_grad()
def joined_logits(folder: Path, batch: Batch) -> torch.Tensor:
    from safetensors.torch import load_file

    encoder = load_encoder(folder).eval()
    tensors = load_file(folder / "head.safetensors")
    pooled = encoder.pool(encoder(batch), batch)
    if "norm.weight" in tensors:
        pooled = nn.functional.layer_norm(
            pooled, pooled.shape[1:], tensors["norm.weight"], tensors["norm.bias"], eps=1e-6
        )
    return nn.functional.linear(pooled, tensors["linear.weight"], tensors["linear.bias"])


def card(task: Classification, encoder: Encoder, result: dict[str, Any], whole: bool) -> str:
    """The folder's README."""
    scores = ", ".join(f"{row['method']} {100 * row['mean']:.2f} %" for row in result["rows"])
    names = ", ".join(str(label) for label in task.dataset.classes)
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task.config.name.replace('_', '-')}",
        "tags: [masquerade]",
        "---",
        "",
        f"# A classifier of {len(task.dataset.classes)} classes",
        "",
        f"Fine-tuned from `{Path(result['encoder']).name}` on {result['labels_total']:,} labelled samples. "
        f"Accuracy on {result['test_samples']:,} test samples: {scores}.",
        "",
        f"Classes, in order: {names}.",
        "",
    ]
    if whole:
        lines.append(f"Opens with `transformers.{task.auto_model}.from_pretrained`.")
    else:
        norm = (
            'features = torch.nn.functional.layer_norm(features, features.shape[1:], head["norm.weight"], '
            'head["norm.bias"], eps=1e-6)\n'
            if isinstance(task.roles["head"].norm, nn.LayerNorm)
            else ""
        )
        lines += [
            "The classifier of this family in `transformers` pools in another way than this one was trained with, so "
            "the head lies in a file of its own:",
            "",
            "```python",
            "from safetensors.torch import load_file\n"
            + encoder.card_code()
            + 'head = load_file(folder + "/head.safetensors")\n'
            + norm
            + 'logits = torch.nn.functional.linear(features, head["linear.weight"], head["linear.bias"])',
            "```",
        ]
    return "\n".join(lines) + "\n"
