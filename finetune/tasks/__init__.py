"""The tasks by name. A user's own is found as `module:Class`, without touching this file."""

from __future__ import annotations

from finetune.tasks.classification import Classification
from finetune.tasks.image_classification import ImageClassification
from finetune.tasks.text_classification import TextClassification
from pretrain.config.registry import find_class

TASKS: dict[str, type[Classification]] = {
    "image_classification": ImageClassification,
    "text_classification": TextClassification,
}


def task_class(name: str) -> type[Classification]:
    """The task called `name`, or the class that `module:Class` names."""
    return find_class(name, TASKS, "task.name")
