"""Continuations in pictures end where the model lets the text end."""

from __future__ import annotations

import torch
from tiny_run import make_text_run

from pretrain.data import build_loader, open_sources
from pretrain.engine.base import World


def test_a_continuation_stops_at_the_end_of_the_text(tmp_path, monkeypatch):
    config, objective = make_text_run(tmp_path, "gpt2", "clm")
    batch = next(iter(build_loader(config, objective, open_sources(config.data), World()))).micro_batches[0]
    tokenizer = objective.encoder.tokenizer
    end, other = tokenizer.eos_token_id, tokenizer("the")["input_ids"][0]

    def write(prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        written = torch.full((len(prompts), new_tokens), other)
        written[:, 3] = end
        return torch.cat([prompts, written], dim=1)

    monkeypatch.setattr(objective, "continue_from", write)
    for excerpt in objective.picture(batch).excerpts:
        assert excerpt.spans[1] == (tokenizer.decode([other] * 3), "generated")
