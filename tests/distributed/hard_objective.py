"""One objective with everything in it that makes engines differ, small enough to run on every engine in a second."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.objectives.base import Batch, Loss, Objective, Phase

DIM, VOCABULARY = 16, 24


@dataclass(frozen=True)
class HardConfig:
    name: str = "tests.distributed.hard_objective:Hard"
    penalty: bool = True


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


class Words(nn.Module):
    """The network in the middle: an embedding that the head shares, and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class Head(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(2)])
        self.score = nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.score(x).squeeze(-1)


class Hard(Objective):
    """Tied weights between roles, two optimizers, a role that judges in the other's phase, a role called twice in a
    phase, a phase that runs every other step and reaches only part of the parameters, an average kept in a fourth role,
    and counts that differ from sample to sample, so from rank to rank."""

    Config = HardConfig

    def __init__(self, config, encoder, dataset) -> None:
        super().__init__(config, encoder, dataset)
        words = Words()
        self.roles = {"words": words, "head": Head(words.embedding.weight), "critic": Critic()}
        self.roles["average"] = copy.deepcopy(words).requires_grad_(False)

    def example(self, sample, rng):
        length = int(rng.integers(1, 9))  # how many of the eight tokens count
        return {"tokens": rng.integers(VOCABULARY, size=8), "counted": (torch.arange(8) < length).numpy()}

    def phases(self):
        penalty = [Phase("penalty", trains=("critic",), optimizer="critic", every=2, fp32=True)]
        return [
            Phase("critic", trains=("critic",), optimizer="critic"),
            *(penalty if self.config.penalty else []),
            Phase("words", trains=("words", "head")),
        ]

    def count(self, phase: Phase, batch: Batch) -> float:
        return float(batch["counted"].sum()) if phase.name == "words" else float(len(batch["tokens"]))

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        tokens, counted = batch["tokens"], batch["counted"]
        if phase.name == "words":
            x = self.roles["words"](tokens)
            right = nn.functional.cross_entropy(self.roles["head"](x).flatten(0, 1), tokens.roll(1, 1).flatten(),
                                                reduction="none").view_as(tokens)  # fmt: skip
            fooled = nn.functional.softplus(-self.roles["critic"](x))
            return Loss(((right + fooled) * counted).sum())
        real = self.roles["average"](tokens).detach()
        if phase.name == "penalty":
            real.requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.roles["critic"](real).sum(), real, create_graph=True)
            return Loss(gradient.square().sum())
        fake = self.roles["words"](tokens).detach()
        score = nn.functional.softplus(-self.roles["critic"](real)) + nn.functional.softplus(
            self.roles["critic"](fake)
        )
        return Loss(score.mean(-1).sum())

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        if phase.name == "words":
            with torch.no_grad():
                for mean, value in zip(
                    self.roles["average"].parameters(), self.roles["words"].parameters(), strict=True
                ):
                    mean.lerp_(value, 0.05)
