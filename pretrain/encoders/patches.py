"""What every encoder of patches is, whatever its samples are: objectives that hide patches know no more of it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from data_tools.errors import UserError
from pretrain.encoders.base import Encoder
from pretrain.ops.patches import patchify, unpatchify

if TYPE_CHECKING:
    from pretrain.tracking.pictures import Picture


class PatchEncoder(Encoder):
    """Cuts samples into patches on a grid: (rows, columns) of an image or spectrogram, (time, rows, columns) of a clip.

    Its `forward(batch, ids_keep=None)` sees the patches `ids_keep` (B, K), or all N, and returns (B, lead + K, D):
    first `lead` tokens of its own, then the patches in the order of `ids_keep`. It takes samples of other sizes than
    those it was built for, with positions interpolated to their grid (`ops.positions.interpolate_positions`).
    """

    gives = frozenset({"dropped"})
    patch: tuple[int, ...]
    """The size of a patch along each axis."""
    grid: tuple[int, ...]
    """Patches along each axis of a `view`."""
    channels: int
    lead: int = 0
    """Tokens before those of the patches (a class token)."""

    @property
    def num_patches(self) -> int:
        """Of a `view`."""
        return prod(self.grid)

    @property
    def patch_values(self) -> int:
        """Numbers in a patch, P."""
        return self.channels * prod(self.patch)

    def values(self, batch: dict[str, Any]) -> Tensor:
        """A batch as the model takes it: (B, C, *sizes), about zero mean and unit variance."""
        raise TypeError(f"{type(self).__name__} must define values()")

    def displayable(self, values: Tensor) -> Tensor:
        """The inverse of `values`, for eyes or ears: (B, C, *sizes) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define displayable()")

    def draw(self, rows: dict[str, Tensor]) -> Picture:
        """By title, what `displayable` returned, as a picture of this encoder's kind."""
        raise TypeError(f"{type(self).__name__} must define draw()")

    def grid_of(self, values: Tensor) -> tuple[int, ...]:
        """Patches along each axis of (B, C, *sizes).

        Raises:
            UserError: patches do not fill it.
        """
        sizes = tuple(values.shape[2:])
        if len(sizes) != len(self.patch) or any(s % p for s, p in zip(sizes, self.patch, strict=True)):
            raise UserError(
                f"samples of {'×'.join(map(str, sizes))}: patches of {'×'.join(map(str, self.patch))} do not fill "
                "them; choose sizes that are multiples of the encoder's patch"
            )
        return tuple(s // p for s, p in zip(sizes, self.patch, strict=True))

    def patchify(self, values: Tensor) -> Tensor:
        """(B, C, *sizes) → (B, N, P), channels last."""
        return patchify(values, self.patch)

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, N, P) → (B, C, *sizes)."""
        return unpatchify(patches, self.patch, grid)
