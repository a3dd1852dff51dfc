"""Code on the model card of a text encoder."""

from __future__ import annotations

CODE = """\
import torch
from transformers import AutoModel, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder{options}).eval()
inputs = tokenizer(["Fellow citizens"], return_tensors="pt")
inputs.pop("token_type_ids", None)
mask = inputs["attention_mask"]
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state
features = {pooling}
"""
POOLING = {
    "mean": "(tokens * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # mean over real tokens",
    "first": "tokens[:, 0]  # the first token",
    "last": "tokens[torch.arange(len(tokens)), mask.sum(1) - 1]  # the last real token",
}


def text_code(pooling: str, options: str) -> str:
    """Code that gives the pooled features of one text, with nothing but `transformers`.

    Args:
        pooling: the encoder's own setting.
        options: further arguments of `AutoModel.from_pretrained`, each after a comma.
    """
    return CODE.format(options=options, pooling=POOLING[pooling])
