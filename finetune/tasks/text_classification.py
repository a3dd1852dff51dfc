"""Text classification."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True)
class TextClassificationConfig(ClassificationConfig):
    name: str = "text_classification"


class TextClassification(Classification):
    """The class of a text."""

    Config = TextClassificationConfig
    modality = "text"
    auto_model = "AutoModelForSequenceClassification"
