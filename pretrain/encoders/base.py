"""What every encoder is: a batch of whole or partly hidden samples in, tokens out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from data_tools.errors import UserError
from data_tools.loader import collate

if TYPE_CHECKING:
    from data_tools.dataset import Dataset


class Encoder(nn.Module):
    """A `transformers` base model (`self.model`), seen as a map from a batch to tokens.

    Training happens on the very modules that are released, so a release is a copy and never a conversion.
    """

    Config: ClassVar[type]
    modality: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type` of the `transformers` folders that this family opens."""
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
        """Our settings for a `transformers` folder with the `config.json` `values`."""
        raise UserError(
            f"{folder}: a {values.get('model_type')} folder that this project has not released cannot be opened yet; "
            "release a run, or give a folder of another family"
        )

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
        UserError: the sample has no such field.
    """
    value: Any = sample
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            has = ", ".join(sorted(key for key in sample if not key.startswith("__")))
            raise UserError(f"sample {sample.get('__key__')!r}: has no field {name!r}; it has: {has}")
        value = value[part]
    return value
