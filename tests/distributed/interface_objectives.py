"""Small objectives, each of which needs one part of the interface in docs/objectives.md."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.stream.collate import collate
from pretrain.encoders.patches import PatchEncoder
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.ops.ema import update_ema
from pretrain.ops.positions import interpolate_positions, sincos_positions
from pretrain.tracking.pictures import ImageGrid

DIM, VOCABULARY = 8, 12


@dataclass(frozen=True)
class Config:
    name: str


class Named(Objective):
    """Rows of different lengths (`collate`); one sum over tokens and one over rows (named counts); a temperature that
    changes from step to step (`begin_step`)."""

    Config = Config

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles = {"embed": nn.Embedding(VOCABULARY, DIM), "head": nn.Linear(DIM, VOCABULARY)}
        self.temperature = 0.0

    def begin_step(self, step: int, total_steps: int) -> None:
        self.temperature = 2.0 - step / total_steps

    def example(self, sample, rng):
        return {"tokens": rng.integers(VOCABULARY, size=rng.integers(1, 9))}

    def collate(self, examples):
        length = max(len(e["tokens"]) for e in examples)
        pad = lambda e: np.pad(e["tokens"], (0, length - len(e["tokens"])), constant_values=-1)  # noqa: E731
        return collate([{"tokens": pad(e)} for e in examples])

    def count(self, phase: Phase, batch: Batch) -> dict[str, float]:
        return {"token": float((batch["tokens"] >= 0).sum()), "row": float(len(batch["tokens"]))}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        tokens, valid = batch["tokens"].clamp(min=0), batch["tokens"] >= 0  # (B, L)
        logits = self.roles["head"](self.roles["embed"](tokens)) / self.temperature  # (B, L, V)
        error = F.cross_entropy(
            logits.flatten(0, 1), ((tokens + 1) % VOCABULARY).flatten(), reduction="none"
        ).view_as(tokens)
        rows = (logits.mean(-1) * valid).sum(1).square()  # (B,)
        right = (logits.argmax(-1) == tokens) & valid
        return Loss(
            {"token": (error * valid).sum(), "row": rows.sum()},
            {"accuracy": (right.sum().double(), valid.sum())},
        )


class Contrastive(Objective):
    """Two views of a sample attract, all others of the global batch repel (`world.gather`); the mean over the global
    batch is pulled to zero (`world.sum`)."""

    Config = Config

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles = {"body": nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), "head": nn.Linear(DIM, DIM)}

    def example(self, sample, rng):
        x = rng.standard_normal(DIM, dtype=np.float32)
        return {"views": np.stack([x, x + rng.standard_normal(DIM, dtype=np.float32) / 2])}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        one, two = (self.roles["head"](self.roles["body"](batch["views"][:, i])) for i in (0, 1))  # (B, D)
        everyone = F.normalize(self.world.gather(two), dim=1)  # (ranks · B, D)
        logits = F.normalize(one, dim=1) @ everyone.T / 0.2  # (B, ranks · B)
        target = self.world.rank * len(one) + torch.arange(len(one), device=one.device)
        mean = self.world.sum(one.sum(0)) / len(everyone)  # (D,)
        return Loss(F.cross_entropy(logits, target, reduction="sum") + len(one) * mean.square().sum())


class Taught(Objective):
    """A student guesses what its averaged teacher says of another view; the teacher is the `product`."""

    Config = Config
    product = "teacher"

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles["teacher"] = copy.deepcopy(encoder).requires_grad_(False)
        self.roles["predictor"] = nn.Linear(encoder.dim, encoder.dim)

    def phases(self) -> list[Phase]:
        return [Phase("train", trains=("encoder", "predictor"))]

    def example(self, sample, rng):
        view = self.view(sample)
        return {**view, "noise": rng.standard_normal(view["image"].shape, dtype=np.float32)}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        image = batch["image"].float() / 255
        guess = self.roles["predictor"](self.roles["encoder"]({"image": image + 0.1 * batch["noise"]}))
        with torch.no_grad():
            target = self.roles["teacher"]({"image": image})
        return Loss((guess.float() - target.float()).square().flatten(1).mean(1).sum())

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        teacher, student = self.roles["teacher"].parameters(), self.roles["encoder"].parameters()
        update_ema(teacher, student, 0.9, step, skipped)


class Sometimes(Objective):
    """Uses one of its layers in every other step only."""

    Config = Config

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles = {"usual": nn.Linear(DIM, DIM), "rare": nn.Linear(DIM, DIM)}
        self.rare = False

    def begin_step(self, step: int, total_steps: int) -> None:
        self.rare = step % 2 == 0

    def example(self, sample, rng):
        return {"x": rng.standard_normal(DIM, dtype=np.float32)}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        x = self.roles["usual"](batch["x"])
        x = self.roles["rare"](x) if self.rare else x
        return Loss((x - 1).square().mean(1).sum())


class Spoilt(Objective):
    """Two players; the first one's gradient is not finite from the second step on, which must not move its average."""

    Config = Config

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        self.roles = {"one": nn.Linear(DIM, 1), "other": nn.Linear(DIM, 1)}
        self.roles["mean"] = copy.deepcopy(self.roles["one"]).requires_grad_(False)
        self.spoil = 1.0

    def phases(self) -> list[Phase]:
        return [Phase("one", ("one",), "one"), Phase("other", ("other",), "other", every=3)]

    def begin_step(self, step: int, total_steps: int) -> None:
        self.spoil = float("nan") if step else 1.0

    def example(self, sample, rng):
        return {"x": rng.standard_normal(DIM, dtype=np.float32)}

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        spoil = self.spoil if phase.name == "one" else 1.0
        return Loss(((self.roles[phase.name](batch["x"]) - 1).square() * spoil).sum())

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        if phase.name == "one":
            update_ema(self.roles["mean"].parameters(), self.roles["one"].parameters(), 0.5, step, skipped)


@dataclass(frozen=True)
class ClipConfig:
    name: str
    hidden_size: int = 12


class ClipEncoder(PatchEncoder):
    """Clips (B, 1, time, rows, columns) in patches along all three axes: what a family of its own must define."""

    Config = ClipConfig
    modality = "clip"
    patch, grid, channels = (2, 4, 4), (2, 2, 3), 1

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.dim = config.hidden_size
        self.model = nn.Sequential(
            nn.Linear(self.patch_values, self.dim), nn.Tanh(), nn.Linear(self.dim, self.dim)
        )
        self.register_buffer("positions", sincos_positions(self.grid, self.dim), persistent=False)

    def view(self, sample):
        """A window that moves over the picture."""
        image = sample["image"][..., 0]
        return {"clip": np.stack([image[10 + t : 18 + t, 8:20] for t in range(4)])[None]}

    def values(self, batch):
        return batch["clip"].float() / 127.5 - 1

    def displayable(self, values):
        return (values + 1) / 2

    def draw(self, rows):
        return ImageGrid({title: clips[:, :, 0] for title, clips in rows.items()})

    def forward(self, batch, ids_keep=None, **hidden):
        values = self.values(batch)
        x = self.model(self.patchify(values))
        x = x + interpolate_positions(self.positions, self.grid, self.grid_of(values))
        return x if ids_keep is None else x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, self.dim))
