"""What every encoder is: a batch of whole or partly hidden samples in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from data_tools.dataset.damage import IncompleteSampleError
from data_tools.errors import UserError
from data_tools.stream.collate import collate
from pretrain.encoders.hf_model import read_hf_config, split_settings

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset


@dataclass(frozen=True)
class PretrainedConfig:
    """Settings of an encoder on a `transformers` model."""

    name: str
    from_pretrained: str | None = None
    """A `transformers` folder or a release to start from; sizes are the folder's unless set here."""
    transformers: dict[str, Any] | None = None
    """What no setting here says, in words of `transformers`: `{hidden_act: relu}`. With `from_pretrained` the folder's,
    whole, where it is not set here."""


class Encoder(nn.Module):
    """A `transformers` base model (`self.model`), seen as a map from a batch to tokens.

    Training happens on the very modules that are released, so a release is a copy and never a conversion.
    """

    Config: ClassVar[type]
    HFConfig: ClassVar[Any] = None
    """The family's configuration in `transformers`."""
    derived: ClassVar[tuple[str, ...]] = ()
    """Names in it that follow from settings with other names."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """What objectives may need of it: `pretrain/objectives/pairs.py`."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """Why it does not give something, for an error."""
    modality: ClassVar[str]
    pipeline: ClassVar[str] = "feature-extraction"
    """What its model card calls its use, in the Hugging Face hub's words."""
    card_notes: ClassVar[str] = ""
    """What its model card says of using it, beside the code."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type` of the `transformers` folders that this family opens."""
    couples_samples: bool = False
    """Whether what a sample gives in training depends on the others of its micro-batch (batch norm)."""
    dim: int
    """Width D of the tokens."""
    model: nn.Module

    def __init__(self, config: Any, dataset: Dataset | None) -> None:
        """`dataset` supplies what the data decide: the vocabulary size, the tokenizer. None: all is in `config`."""
        super().__init__()
        self.config = config
        self.dataset_folder = dataset.folder if dataset is not None else None

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """One whole sample as this encoder takes it: fixed shape, nothing random. CPU."""
        raise TypeError(f"{type(self).__name__} must define view()")

    def random_view(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A random part of a sample, as `view` gives whole ones: what LiDAR compares with other parts of it. CPU."""
        raise TypeError(f"{type(self).__name__} must define random_view()")

    @classmethod
    def collate(cls, views: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Views → a batch on the CPU; families whose views differ in length pad them here."""
        return collate(views)

    def forward(self, batch: dict[str, Any], **hidden: Any) -> Tensor:
        """Tokens (B, N, D) of a batch; `hidden` says, per family, what the encoder must not see."""
        raise TypeError(f"{type(self).__name__} must define forward()")

    def pool(self, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """One vector a sample: tokens (B, N, D) → (B, D). A pure function, without parameters."""
        return tokens.mean(1)

    def raw_features(self, batch: dict[str, Any]) -> Tensor:
        """Whole samples as they come, (B, D): what an encoder's features are compared with."""
        raise TypeError(f"{type(self).__name__} must define raw_features()")

    def blocks(self) -> list[nn.Module]:
        """The blocks in order from input to output, for layer-wise decay and for sharding."""
        return []

    def after_blocks(self) -> list[nn.Module]:
        """What follows the last block (the final norm)."""
        return []

    @classmethod
    def settings_from(cls, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """The settings that a `transformers` folder with the `config.json` `values` stands for, wholly."""
        return split_settings(read_hf_config(cls.HFConfig, values, folder), cls.Config, cls.derived)

    def card_code(self) -> str:
        """Code for the model card that gives the pooled features of one sample, with nothing but `transformers`."""
        raise TypeError(f"{type(self).__name__} must define card_code()")

    def find_valid(self, batch: dict[str, Any]) -> Tensor:
        """Which tokens (B, N) of whole samples, or which samples (B,), are no padding. By default all."""
        return torch.ones(len(next(iter(batch.values()))), dtype=torch.bool)

    def plain_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A batch of whole samples as arguments of the `transformers` model."""
        raise TypeError(f"{type(self).__name__} must define plain_inputs()")

    def check_processor(self, folder: Path, samples: list[dict[str, Any]]) -> None:
        """Compare what a released folder's processor makes of samples with what training sees.

        Raises:
            UserError: they differ.
        """

    def check_data(self, dataset: Any, place: str) -> None:
        """Raise a `UserError` where the samples of a data set (`place`: the setting that names it) are not for us."""

    def save(self, folder: Path) -> None:
        """Write a folder that `transformers.AutoModel` opens, with its processor or tokenizer.

        Raises:
            UserError: the family has no counterpart in `transformers`.
        """
        raise UserError(
            f"encoder.name={self.config.name!r}: transformers has no such model, so it cannot be released; "
            "train one of the families that docs/support.md marks as releasable"
        )


def field(sample: dict[str, Any], name: str) -> Any:
    """A field of a sample; `json.party` reaches into a member.

    Raises:
        IncompleteSampleError: the sample has no such field; a loader then takes another.
    """
    value: Any = sample
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            has = ", ".join(sorted(key for key in sample if not key.startswith("__")))
            raise IncompleteSampleError(
                f"sample {sample.get('__key__')!r}: has no field {name!r}; it has: {has}", name
            )
        value = value[part]
    return value
