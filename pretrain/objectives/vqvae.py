"""Vector-quantised variational autoencoder (van den Oord et al. 2017, arXiv:1711.00937): an image as words.

Each place of the encoder's feature map is replaced by the nearest of K codes, and the image is drawn from those. The
reconstruction's gradient passes straight through the replacement. Codes are means of what chose them lately, or
parameters with a loss of their own; codes that nothing chooses any more are put onto vectors of the batch (Dhariwal et
al. 2020, arXiv:2005.00341, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from data_tools.errors import UserError
from pretrain.encoders.image.base import ImageEncoder
from pretrain.objectives.autoencoder import to_unit_range
from pretrain.objectives.base import Batch, Loss, Metric, Objective, Phase
from pretrain.objectives.codebook import Codebook
from pretrain.objectives.image_decoders import MapDecoder
from pretrain.tracking.pictures import ImageGrid, bar_chart

if TYPE_CHECKING:
    from data_tools.dataset.dataset import Dataset

RESTART_BELOW = 0.1


@dataclass(frozen=True)
class VQVAEConfig:
    """Distances are means over numbers, as in the authors' code (sonnet, vqvae.py)."""

    name: str = "vqvae"
    codes: PositiveInt = 512
    """K."""
    code_size: PositiveInt = 64
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment: how strongly the encoder is drawn to the code that it chose."""
    pixel_variance: PositiveFloat = 1.0
    """What the squared error of pixels in [0, 1] is divided by."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How codes follow what chooses them: as its exponential mean, or by the gradient of their squared distance."""
    ema_decay: float = 0.99
    """Of `codebook: ema`."""
    restart_below: NonNegativeFloat | None = None
    """A code chosen less often than this share of the mean over codes is put onto a vector of the batch. Default: 0.1
    with `codebook: ema`, 0 (never) with `gradient`, which cannot."""
    decoder_width: PositiveInt = 64
    decoder_residual_blocks: NonNegativeInt = 2


class VQVAE(Objective):
    """mean‖x − x̂‖² / σ² + β·mean‖z − sg[e]‖², and with `codebook: gradient` + mean‖sg[z] − e‖²; over images."""

    Config = VQVAEConfig
    hides = "all but which of K codes each place of a map is nearest to"
    needs: ClassVar[Mapping[str, str]] = {"images": "a VQ-VAE needs an encoder of images"}
    alternatives = ("mlm", "clm")
    encoder: ImageEncoder

    def __init__(self, config: VQVAEConfig, encoder: ImageEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        if not 0 <= config.ema_decay < 1:
            raise UserError(f"objective.ema_decay={config.ema_decay}: must lie in [0, 1)")
        self.averaged = config.codebook == "ema"
        if not self.averaged and config.restart_below:
            raise UserError(
                f"objective.restart_below={config.restart_below}: codes that are parameters have an optimizer's state "
                "and stay where they are; set objective.codebook=ema, or leave it out"
            )
        default = RESTART_BELOW if self.averaged else 0.0
        self.restart_below = default if config.restart_below is None else config.restart_below
        self.places = prod(encoder.token_grid)
        doublings = count_doublings(encoder)
        self.roles["bottleneck"] = nn.Linear(encoder.dim, config.code_size)
        self.roles["codebook"] = Codebook(config.codes, config.code_size, self.averaged)
        widths = (config.decoder_width,) * doublings
        self.roles["decoder"] = MapDecoder(
            config.code_size, widths, encoder.config.num_channels, config.decoder_residual_blocks
        )
        self.seen: list[dict[str, Tensor]] = []
        """What each micro-batch of this step has chosen, on this rank."""

    def phases(self) -> list[Phase]:
        """One, which trains the codebook only where its codes are parameters."""
        return [Phase("train", tuple(role for role in self.roles if role != "codebook" or not self.averaged))]

    def begin_step(self, step: int, total_steps: int) -> None:
        self.seen = []

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """{"image": (C, H, W), "place", "turn"}: where in its map a vector may be taken for a dead code, and whose turn
        it is: the samples with the smallest numbers, so that it does not matter how a batch is shared out."""
        place = np.int64(rng.integers(self.places))
        return {**self.view(sample), "place": place, "turn": np.float64(rng.random())}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        z = self.latents(batch)  # (B, N, E)
        codes, numbers = self.roles["codebook"](z)  # (B, N, E), (B, N)
        drawing = self.draw(z + (codes - z).detach())  # straight through: values of the codes, gradient of z
        image = to_unit_range(batch["image"])
        reconstruction = mean_square(drawing - image).sum() / self.config.pixel_variance
        commitment = mean_square(z - codes.detach()).sum()
        loss = reconstruction + self.config.beta * commitment
        if not self.averaged:
            loss = loss + mean_square(codes - z.detach()).sum()
        metrics: dict[str, Metric] = {
            "reconstruction": reconstruction.detach(), "commitment": commitment.detach()
        }  # fmt: skip
        if self.codebook.training:  # held-out samples move nothing
            self.note(z.detach(), numbers, batch)
            one = torch.ones((), device=z.device)
            metrics |= {name: (value, one) for name, value in self.codebook.describe_use().items()}
        return Loss(loss, metrics)

    @property
    def codebook(self) -> Codebook:
        book = self.roles["codebook"]
        assert isinstance(book, Codebook)
        return book

    def latents(self, batch: Batch) -> Tensor:
        """What is quantised: (B, N, E), in fp32."""
        tokens = self.roles["encoder"](batch)  # (B, [1 +] N, D)
        return self.roles["bottleneck"](tokens[:, -self.places :]).float()

    def draw(self, codes: Tensor) -> Tensor:
        """(B, N, E) → images (B, C, H, W), unbounded."""
        features = codes.transpose(1, 2).unflatten(2, self.encoder.token_grid)  # (B, E, h, w)
        return self.roles["decoder"](features).float()

    @torch.no_grad()
    def note(self, z: Tensor, numbers: Tensor, batch: Batch) -> None:
        """Remember what a micro-batch has chosen until its step is made."""
        chosen, vectors = numbers.flatten(), z.flatten(0, 1)  # (B · N,), (B · N, E)
        counts = torch.zeros(self.config.codes, device=z.device)
        seen = {"counts": counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))}
        if self.averaged:
            sums = torch.zeros(self.config.codes, z.shape[2], device=z.device)
            seen["sums"] = sums.index_add_(0, chosen, vectors)
            seen["turn"] = batch["turn"]
            seen["fresh"] = z.gather(1, batch["place"].view(-1, 1, 1).expand(-1, 1, z.shape[2])).squeeze(1)
        self.seen.append(seen)

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        """Let the codebook follow what all ranks have chosen in all micro-batches."""
        counts = self.world.sum(torch.stack([seen["counts"] for seen in self.seen]).sum(0))
        if not self.averaged:
            self.codebook.keep_counts(counts, skipped)
            return
        sums = self.world.sum(torch.stack([seen["sums"] for seen in self.seen]).sum(0))
        turn, fresh = (
            self.world.gather(torch.cat([seen[name] for seen in self.seen])) for name in ("turn", "fresh")
        )
        fresh = fresh.index_select(0, turn.argsort())
        # Early on the mean forgets faster, so that initial codes do not linger (as in `ops.ema`).
        weight = 1 - min(self.config.ema_decay, (1 + step) / (10 + step))
        self.codebook.move(counts, sums, fresh, weight, self.restart_below, skipped)

    def picture(self, batch: Batch) -> ImageGrid:
        """Reconstructions, each place's code as a grey, what codes draw alone (often to rare), each one's use."""
        codes, numbers = self.roles["codebook"](self.latents(batch))
        book = self.codebook
        often, order = book.chosen.sort(descending=True, stable=True)
        spread = torch.linspace(0, len(order) - 1, len(codes), device=order.device).long()  # the rarest too
        alone = book.codes[order[spread]].unsqueeze(1).expand(-1, self.places, -1)  # (B, N, E)
        grey = numbers.unflatten(1, (1, *self.encoder.token_grid)) / max(self.config.codes - 1, 1)
        return ImageGrid(
            {
                "original": to_unit_range(batch["image"]),
                "reconstruction": self.draw(codes).clamp(0, 1),
                "codes": grey,
                "codes alone": self.draw(alone).clamp(0, 1),
                "codes by use": bar_chart(often).unsqueeze(0),
            }
        )


def count_doublings(encoder: ImageEncoder) -> int:
    """How often the encoder's map is doubled until it has the image's size."""
    (rows, columns), (height, width) = encoder.token_grid, encoder.sizes
    doublings = (height // rows).bit_length() - 1
    if doublings < 1 or (rows << doublings, columns << doublings) != (height, width):
        raise UserError(
            f"encoder.name={encoder.config.name!r}: its map has {rows}×{columns} places, and a VQ-VAE's decoder "
            f"doubles it until it has {height}×{width} pixels; choose encoder.image_size and encoder.patch_size so "
            "that their ratio is 2, 4, 8, …"
        )
    return doublings


def mean_square(x: Tensor) -> Tensor:
    """(B, …) → (B,)."""
    return x.pow(2).flatten(1).mean(1)
