"""A run under FSDP that begins with somebody's folder: each rank reads its shards, and has what one process has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ConvNextV2Config,
    ConvNextV2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

from benchmarks.start_memory import fingerprint_whole
from pretrain.config.load import load_config
from tests.distributed.start_from_folders import begin
from tests.processes import run

pytestmark = pytest.mark.slow
RANKS = 2
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 4096, "max_position_embeddings": 128}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"vocab_size": 4096, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# By name: the folder's model, how it is saved, and the recipe with its settings beside the folder.
FOLDERS: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "large": (lambda: GPT2Model(GPT2Config(**GPT2, n_embd=768, n_layer=14, n_head=12)), {}, "clm_sotu", {}),
    "vit, other sizes": (
        lambda: ViTModel(ViTConfig(**SMALL, image_size=56, patch_size=7, num_channels=3), add_pooling_layer=False),
        {}, "autoencoder_digits", {"image_size": 28, "num_channels": 1},
    ),
    "convnextv2": (
        lambda: ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_channels=1,
                                                 image_size=28)),
        {}, "autoencoder_digits", {},
    ),
    "bert with a head": (lambda: BertForMaskedLM(BertConfig(**SMALL, **TEXT, **NO_DROPOUT)), {}, "mlm_sotu", {}),
    "gpt2, more positions": (
        lambda: GPT2Model(GPT2Config(**GPT2, n_embd=16, n_layer=2, n_head=2)), {}, "clm_sotu", {"n_positions": 192},
    ),
    "llama, 16 bits, several files": (
        lambda: LlamaModel(LlamaConfig(**SMALL, **TEXT)).bfloat16(), {"max_shard_size": "100KB"}, "clm_sotu", {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, str]:
    """A recipe that begins with each folder."""
    root = tmp_path_factory.mktemp("folders")
    for name, (model, how, recipe, settings) in FOLDERS.items():
        torch.manual_seed(1)
        folder = root / name.replace(",", "").replace(" ", "_")
        model().save_pretrained(folder, **how)
        values = yaml.safe_load(Path(f"pretrain/recipes/{recipe}.yaml").read_text())
        length = {"max_length": 128} if recipe.endswith("sotu") else {}
        values["encoder"] = {"from_pretrained": str(folder), **length, **settings}
        values["train"] = {"steps": 8, "global_batch_size": 4}
        values["tracking"] = {"log_every": 1}
        folder.with_suffix(".yaml").write_text(yaml.safe_dump(values))
    return {name: str(root / f"{name.replace(',', '').replace(' ', '_')}.yaml") for name in FOLDERS}


@pytest.fixture(scope="module")
def ranks(recipes, tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    run("tests.distributed.start_from_folders", [str(out), ",".join(recipes.values())], RANKS)
    return [json.loads(path.read_text()) for path in sorted(out.glob("rank_*.json"))]


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "large"])
def test_a_run_begun_from_a_folder_has_the_weights_and_losses_of_one_process(recipes, ranks, name):
    config, _ = load_config(recipes[name], [])
    whole, alone = fingerprint_whole(config, RANKS), begin(config)
    for i, rank in enumerate(ranks):
        found = rank[Path(recipes[name]).stem]
        assert found["shards"] == {parameter: pieces[i] for parameter, pieces in whole.items()}
        assert found["reports"] == alone["reports"], "what is told of the folder"
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    (report,) = alone["reports"]
    assert report["tensors"] > 10
    assert len(report["fitted"]) == {"vit": 2, "gpt2": 1}.get(name.partition(",")[0], 0)
    assert bool(report["unused"]) == (name == "bert with a head")


def test_a_rank_that_begins_with_a_large_folder_needs_little_more_than_its_shards(recipes, ranks):
    whole = fingerprint_whole(load_config(recipes["large"], [])[0], RANKS)
    for i, rank in enumerate(ranks):
        found = rank["memory"]
        assert found["parameters"] > 100e6
        assert found["shards"] == {parameter: pieces[i] for parameter, pieces in whole.items()}
        assert found["peak_bytes"] < 1.5 * found["sharded_bytes"], (
            found["peak_bytes"] / found["sharded_bytes"]
        )
