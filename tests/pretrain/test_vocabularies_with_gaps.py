"""Ids that no token has: an encoder has rows for them, masking neither hides nor draws them."""

from __future__ import annotations

import json
from pathlib import Path

from text_models import TEXTS

from data_tools.tokenizer import save_tokenizer, train_tokenizer
from pretrain.encoders.text.tokenizer import bytes_of_tokens, open_tokenizer, tokens_by_id
from pretrain.objectives.masking import read_vocabulary


def test_ids_without_a_token_are_counted_and_never_drawn(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(TEXTS * 3, 320), tmp_path, length=64)
    whole = open_tokenizer(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] = 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    gapped = open_tokenizer(tmp_path)
    assert tokens_by_id(whole) == whole.convert_ids_to_tokens(list(range(len(whole))))
    assert len(tokens_by_id(gapped)) == 1001 and tokens_by_id(gapped)[1000] == last
    sizes = bytes_of_tokens(gapped)
    assert sizes is not None and sizes[1000] == len(last) and not sizes[len(whole) - 1 : 1000].any()
    known = read_vocabulary(gapped, 1024)
    assert set(known.ordinary_ids.tolist()) == set(vocabulary.values()) - set(range(6))
