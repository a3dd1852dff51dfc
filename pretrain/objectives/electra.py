"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): a small generator fills in hidden tokens, the encoder finds which.

The encoder (the discriminator) learns from every token, not only from the hidden ones. Both networks are trained
together, each for itself: no gradient passes through what the generator has drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.errors import UserError
from pretrain.encoders.text.bert import BertEncoder
from pretrain.objectives.base import Batch, Companion, Loss, Objective, Phase
from pretrain.objectives.masking import Unit, hide_tokens, read_vocabulary
from pretrain.objectives.mlm import MLMHead, append, check_masking
from pretrain.ops.attention import attention_mask
from pretrain.ops.linear_cross_entropy import IGNORE, linear_cross_entropy, sample_tokens
from pretrain.tracking.pictures import TextExcerpt, TextExcerpts

if TYPE_CHECKING:
    from transformers import ElectraConfig

    from data_tools.dataset.dataset import Dataset

HEAD_WIDTH = 64
"""Of an attention head of the generator (run_pretraining.py of the reference)."""


@dataclass(frozen=True)
class ELECTRAConfig:
    """Defaults of the reference (configure_pretraining.py, pretrain_helpers.py of google-research/electra)."""

    name: str = "electra"
    mask_ratio: float = 0.15
    unit: Unit = "token"
    """What is hidden as a whole: single tokens, words, or spans of words."""
    replacement: tuple[float, float, float] = (0.85, 0.0, 0.15)
    """Shares of hidden places where the generator sees [MASK], a random token, or the token itself."""
    generator_width: PositiveFloat = 0.25
    """Width of the generator's blocks, relative to the encoder's."""
    generator_depth: PositiveFloat = 1.0
    """Its number of blocks, likewise."""
    discriminator_weight: NonNegativeFloat = 50.0


class Detection(NamedTuple):
    """What both networks made of a batch."""

    generator_loss: Tensor
    """Scalar, summed over hidden tokens."""
    right: Tensor
    """How many of them the generator's likeliest token is."""
    original: Tensor
    """(B, L): the tokens before any was hidden."""
    corrupted: Tensor
    """(B, L): the same with the generator's draws."""
    logits: Tensor
    """(B, L): positive where the discriminator calls a token replaced."""


class ELECTRA(Objective):
    """Generator: mean of −log p over hidden tokens. Discriminator: 50 × mean over all tokens of the cross-entropy of
    replaced or not; a draw that happens to be the token itself counts as not replaced."""

    Config = ELECTRAConfig
    hides = "which tokens a small generator has replaced"
    needs: ClassVar[Mapping[str, str]] = {
        "bidirectional": "ELECTRA looks at both sides",
        "embedded": "ELECTRA's generator shares the encoder's embeddings of tokens and positions",
    }
    alternatives = ("mlm", "clm")
    encoder: BertEncoder

    def __init__(self, config: ELECTRAConfig, encoder: BertEncoder, dataset: Dataset) -> None:
        super().__init__(config, encoder, dataset)
        check_masking(config, encoder)
        from transformers.models.electra.modeling_electra import (
            ElectraDiscriminatorPredictions,
            ElectraGeneratorPredictions,
        )

        self.vocabulary = read_vocabulary(encoder.tokenizer, encoder.vocab_size)
        sizes = generator_sizes(config, encoder)
        self.roles["generator"] = Generator(sizes, encoder)
        transform = ElectraGeneratorPredictions(sizes).apply(encoder.model._init_weights)
        self.roles["generator_head"] = GeneratorHead(transform, encoder.vocab_size)
        detector = ElectraDiscriminatorPredictions(encoder.model.config)
        self.roles["discriminator_head"] = detector.apply(encoder.model._init_weights)

    def example(self, sample: dict[str, Any], rng: np.random.Generator) -> Batch:
        """As MLM's, and "noise" (K,) in [0, 1): what decides the generator's draw at each hidden place."""
        row, config = self.encoder.row_of(sample, rng), self.config
        hidden = hide_tokens(row, self.vocabulary, config.mask_ratio, config.unit, config.replacement, rng)
        return {**hidden, "noise": rng.random(len(hidden["masked"]), dtype=np.float32)}

    def count(self, phase: Phase, batch: Batch) -> dict[str, float]:
        """Hidden tokens, and all that are no padding."""
        return {
            "generator": float((batch["target"] != IGNORE).sum()),
            "discriminator": float((batch["document_ids"] > 0).sum()),
        }

    def loss(self, phase: Phase, batch: Batch) -> Loss:
        found = self.detect(batch)
        real = batch["document_ids"] > 0  # (B, L)
        replaced, called = found.corrupted != found.original, found.logits > 0  # (B, L), (B, L)
        error = F.binary_cross_entropy_with_logits(found.logits, replaced.float(), reduction="none")
        error_sum = (error * real).sum()
        metrics = {
            "generator_accuracy": (found.right, (batch["target"] != IGNORE).sum()),
            "detection_error": (error_sum.detach(), real.sum()),
            "detection_accuracy": (((called == replaced) & real).sum(), real.sum()),
            "replaced_found": ((called & replaced).sum(), replaced.sum()),
        }
        sums = {
            "generator": found.generator_loss,
            "discriminator": self.config.discriminator_weight * error_sum,
        }
        return Loss(sums, metrics)

    def detect(self, batch: Batch) -> Detection:
        """Let the generator fill in the hidden tokens, and the discriminator look for its draws."""
        encoder, target = self.roles["encoder"], batch["target"]  # (B, K)
        hidden = self.roles["generator"](encoder(batch, embed_only=True), batch)  # (B, L, d)
        hidden = hidden.gather(1, batch["masked"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))  # (B, K, d)
        loss, right, drawn = self.roles["generator_head"](
            hidden.flatten(0, 1), self.encoder.token_embedding, target.flatten(), batch["noise"].flatten()
        )
        original = put(batch["tokens"], batch["masked"], target, target != IGNORE)
        corrupted = put(original, batch["masked"], drawn.view_as(target), target != IGNORE)
        tokens = encoder({**batch, "tokens": corrupted})  # (B, L, D)
        logits = self.roles["discriminator_head"](tokens).float()  # (B, L)
        return Detection(loss, right, original, corrupted, logits)

    def picture(self, batch: Batch) -> TextExcerpts:
        """Each row as the discriminator saw it: draws that it found or missed, and sound tokens that it blamed."""
        found = self.detect(batch)
        columns = (batch["document_ids"], found.original, found.corrupted, found.logits > 0)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return TextExcerpts([self.marked(*row) for row in rows])

    def marked(
        self, document_ids: list[int], original: list[int], corrupted: list[int], called: list[bool]
    ) -> TextExcerpt:
        """One row as marked parts of text: `right` draws were found, `generated` ones missed, `wrong` is sound text."""
        parts: list[tuple[list[int], str]] = []
        for document, truth, token, blamed in zip(document_ids, original, corrupted, called, strict=True):
            if not document:
                continue
            if token == truth:
                append(parts, token, "wrong" if blamed else "given")
                continue
            append(parts, token, "right" if blamed else "generated")
            append(parts, truth, "truth")
        return TextExcerpt([(self.encoder.tokenizer.decode(ids), kind) for ids, kind in parts])

    def companions(self) -> dict[str, Companion]:
        """The generator as `ElectraForMaskedLM`; an `electra` encoder with its head as `ElectraForPreTraining`."""
        from transformers import ElectraForMaskedLM, ElectraForPreTraining

        generator: Any = self.roles["generator"]
        head: Any = self.roles["generator_head"]
        model: Any = self.encoder.model
        embeddings = part("electra.embeddings.", model.embeddings)
        masked_lm = ElectraForMaskedLM(generator.config)
        state = {
            **embeddings,
            **{f"electra.{name}": tensor for name, tensor in generator.state_dict().items()},
            **part("generator_predictions.", head.transform),
            "generator_lm_head.weight": self.encoder.token_embedding,
            "generator_lm_head.bias": head.bias,
        }
        masked_lm.load_state_dict(state)

        def fill_in(batch: Batch) -> Tensor:
            hidden = generator(self.roles["encoder"](batch, embed_only=True), batch)
            return head.logits(hidden, self.encoder.token_embedding)

        found = {"generator": Companion(masked_lm, fill_in)}
        if model.config.model_type == "electra":
            detector = ElectraForPreTraining(model.config)
            predictions = self.roles["discriminator_head"]
            detector.load_state_dict(
                {**part("electra.", model), **part("discriminator_predictions.", predictions)}
            )
            found["discriminator"] = Companion(
                detector, lambda batch: predictions(self.roles["encoder"](batch))
            )
        return found


class Generator(nn.Module):
    """ELECTRA's blocks on somebody else's embeddings: they stay the encoder's, so that nothing holds them twice."""

    def __init__(self, config: ElectraConfig, encoder: BertEncoder) -> None:
        super().__init__()
        from transformers.models.electra.modeling_electra import ElectraEncoder

        self.config = config
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = ElectraEncoder(config)
        self.apply(encoder.model._init_weights)

    def forward(self, embedded: Tensor, batch: Batch) -> Tensor:
        """(B, L, E) → (B, L, d)."""
        if hasattr(self, "embeddings_project"):
            embedded = self.embeddings_project(embedded)
        mask = attention_mask(batch, str(self.config._attn_implementation))
        hidden: Tensor = self.encoder(embedded, attention_mask=mask).last_hidden_state
        return hidden


class GeneratorHead(MLMHead):
    """To the width of the embeddings, which decode; and the draws, as the next network's input."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, embedding: Tensor, target: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (N, d), embedding (V, E), target, noise (N,) → the summed loss, hits, and a draw for each row (N,)."""
        x = self.transform(hidden)  # (N, E)
        loss, right = linear_cross_entropy(x, embedding, self.bias, target)
        return loss, right, sample_tokens(x, embedding, self.bias, noise)


def generator_sizes(config: ELECTRAConfig, encoder: BertEncoder) -> ElectraConfig:
    """The generator's configuration in `transformers`; what has nothing to do with its size is the encoder's.

    Raises:
        UserError: it would have no width or no block.
    """
    from transformers import ElectraConfig

    whole = encoder.model.config
    width = round(config.generator_width * whole.hidden_size)
    depth = round(config.generator_depth * whole.num_hidden_layers)
    if min(width, depth) < 1:
        raise UserError(
            f"objective.generator_width={config.generator_width}, generator_depth={config.generator_depth}: leave a "
            f"generator of width {width} and {depth} blocks; make them larger"
        )
    heads = max(n for n in range(1, max(1, width // HEAD_WIDTH) + 1) if width % n == 0)
    same = ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_act", "hidden_dropout_prob",
            "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "pad_token_id")  # fmt: skip
    attention: dict[str, Any] = {
        "attn_implementation": encoder.attention
    }  # a keyword of all, which no signature has
    return ElectraConfig(
        **{name: getattr(whole, name) for name in same},
        **attention,
        embedding_size=encoder.token_embedding.shape[1],
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        tie_word_embeddings=True,
    )


def put(tokens: Tensor, places: Tensor, values: Tensor, used: Tensor) -> Tensor:
    """A copy of tokens (B, L) with `values` at `places` (B, K) where those are `used`."""
    length = tokens.shape[1]
    spare = torch.cat([tokens, tokens[:, :1]], dim=1)  # (B, L + 1): what is not used goes to the end
    return spare.scatter(1, places.where(used, length), values.to(tokens.dtype))[:, :length]


def part(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by the names that a larger one has for them."""
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}
