"""The first losses of every recipe on one process, made small where the recipe is a paper's.

    python -m tests.golden.recipes                  write tests/golden/losses.json anew, on engine=ddp
    python -m tests.golden.recipes fsdp out.json    the same on another engine, into a file of its own

Write them anew only where a recipe or what it computes is meant to change, and say in the commit why.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import data_tools.samples
from data_tools.commands.pack.engine import Packed
from data_tools.commands.tokenize import plan_tokenize
from data_tools.dataset.open import open_dataset
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from pretrain.config.load import load_config
from pretrain.data import build_loader, first_of, open_sources
from pretrain.engine import start_engine
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_objective
from pretrain.trainer import Trainer

LOSSES = Path(__file__).parent / "losses.json"
STEPS = 8
COMMON = [f"train.steps={STEPS}", "tracking.log_every=1", "data.workers=0", "train.precision=fp32"]
BERT = ["encoder.hidden_size=64", "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2"]
GPT2 = ["encoder.n_embd=64", "encoder.n_layer=2", "encoder.n_head=2"]
PHOTOS = ["data.path=sample:digits", "encoder.image_size=32", "encoder.patch_size=8", "encoder.hidden_size=32",
          "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2", "train.global_batch_size=8",
          "train.epochs=null"]  # fmt: skip
RESNET = ["data.path=sample:digits", "encoder.image_size=32", "encoder.embedding_size=8",
          "encoder.hidden_sizes=[8, 16]",
          "encoder.depths=[1, 1]", "encoder.layer_type=basic", "train.global_batch_size=8",
          "train.epochs=null"]  # fmt: skip
CROPS = ["objective.small_size=16", "objective.small_crops=2", "objective.prototypes=64",
         "objective.head_hidden_size=32", "objective.head_bottleneck_size=16"]  # fmt: skip
ROWS = ["data.sequence_length=128", "train.global_batch_size=8", "schedule.warmup_steps=4"]
SMALLER: dict[str, list[str]] = {
    "attribute_brown": ["data.path=sample:sotu", "train.global_batch_size=8", "objective={name: attribute, "
                        "attributes: {shape: {derive: word_shape}, party: {field: json.party}}}"],
    "attribute_digits": [],
    "attribute_sotu": ["train.global_batch_size=8"],
    "autoencoder_digits": ["train.global_batch_size=32"],
    "autoencoder_mlp_digits": [],
    "bigan_digits": ["train.global_batch_size=16", "objective.hidden_sizes=[32]"],
    "bigan_mnist": ["data.path=sample:digits", "encoder.hidden_sizes=[32]", "objective.hidden_sizes=[32]",
                    "train.global_batch_size=16", "train.epochs=null"],
    "bert_base": ["data.path={tokens}/cls-sep", *BERT, *ROWS],
    "clm_sotu": ["train.global_batch_size=8"],
    "context_encoder_digits": ["train.global_batch_size=16"],
    "context_encoder_images": ["data.path=sample:digits", "data.workers=0", "encoder.image_size=32",
                               "encoder.hidden_sizes=[8, 8]", "objective.hole_size=16", "objective.bottleneck_size=16",
                               "objective.width=8", "train.global_batch_size=8", "train.epochs=null"],
    "electra_base": ["data.path={tokens}/cls-sep", *BERT, "encoder.embedding_size=64", *ROWS],
    "electra_small": ["data.path={tokens}/cls-sep", *BERT, "encoder.embedding_size=32", *ROWS],
    "electra_sotu": ["train.global_batch_size=8"],
    "dino_digits": ["train.global_batch_size=16"],
    "dino_images": [*PHOTOS, *CROPS],
    "gan_digits": ["train.global_batch_size=16"],
    "gpt2_124m": ["data.path={tokens}/end", *GPT2, *ROWS],
    "ijepa_digits": ["train.global_batch_size=16"],
    "ijepa_images": [*PHOTOS, "encoder.patch_size=4", "objective.predictor_hidden_size=16",
                     "objective.predictor_num_hidden_layers=1", "objective.predictor_num_attention_heads=2",
                     "train.activation_checkpointing=none"],
    "mae_digits": [],
    "mae_images": ["data.path=sample:digits", "encoder.image_size=64", "encoder.hidden_size=48",
                   "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2", "objective.decoder_hidden_size=32",
                   "objective.decoder_num_hidden_layers=1", "objective.decoder_num_attention_heads=2",
                   "train.global_batch_size=8", "train.epochs=null", "optimizer.lr=6e-4"],
    "mlm_sotu": ["train.global_batch_size=8"],
    "simmim_digits": [],
    "simmim_swin_base": ["data.path=sample:digits", "encoder.image_size=64", "encoder.embed_dim=16",
                         "encoder.depths=[1, 1]", "encoder.num_heads=[2, 4]", "encoder.window_size=4",
                         "train.global_batch_size=8", "train.epochs=null"],
    "simmim_vit_base": ["data.path=sample:digits", "encoder.image_size=64", "encoder.hidden_size=48",
                        "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2", "train.global_batch_size=8",
                        "train.epochs=null"],
    "vae_digits": ["train.global_batch_size=32"],
    "vae_mnist": ["data.path=sample:digits", "train.global_batch_size=32", "train.epochs=null"],
    "vqvae_digits": ["train.global_batch_size=16"],
    "vqvae_images": ["data.path=sample:digits", "encoder.image_size=32", "encoder.hidden_sizes=[16, 16]",
                     "objective.codes=32", "objective.code_size=8", "objective.decoder_width=16",
                     "train.global_batch_size=8"],
    "simclr_digits": ["train.global_batch_size=16"],
    "simclr_images": [*RESNET, "optimizer.lr=0.01", "objective.projection_sizes=[32, 16]"],
    "vicreg_digits": ["train.global_batch_size=16"],
    "vicreg_images": [*RESNET, "optimizer.lr=0.01", "objective.expander_sizes=[32, 16]"],
}  # fmt: skip
"""By recipe, what makes it cheap; {tokens} is a folder with tokenized paragraphs."""
WHOLE_PARAMETERS = ("simclr_images", "vicreg_images")
"""Trained by LARS, which DeepSpeed refuses: ZeRO cuts parameters into flat pieces."""


class Recorder:
    """A tracker that keeps what is golden."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def train(self, _step, values):
        self.rows.append({k: v for k, v in values.items() if k.endswith(("loss", "grad_norm", "position"))})


def train(recipe: str, tokens: Path, *overrides: str) -> list[dict[str, float]]:
    """The losses, gradient norms and positions of each step."""
    smaller = [setting.replace("{tokens}", str(tokens)) for setting in SMALLER[recipe]]
    config, _ = load_config(recipe, [*COMMON, *smaller, *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = start_engine(config)
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
    loader = build_loader(config, objective, sources, engine.world)
    recorder = Recorder()
    Trainer(config, objective, loader, engine, STEPS, tracker=recorder).fit()  # type: ignore[arg-type]
    return recorder.rows


def tokenize(folder: Path) -> None:
    """Write the embedded paragraphs as tokens, as `bert_base` and as `gpt2_124m` want them.

    By the functions of `python -m data_tools tokenize`, without the processes that it starts.
    """
    tokenizer = Path(data_tools.samples.__file__).parent / "sotu" / "tokenizer"
    for ends in ("cls-sep", "end"):
        source = plan_tokenize("sample:sotu", open_dataset("sample:sotu"), tokenizer, ends, [])
        writer = ShardWriter(folder / ends, with_length=True)
        for job in source.jobs:
            for document in source.read(job):
                assert isinstance(document, Packed)
                writer.write(document.key, document.members, document.length)
        for name, file in source.files.items():
            (folder / ends / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / ends / name)
        finish_dataset(writer, source.about)


def train_all(engine: str, tokens: Path) -> dict[str, list[dict[str, float]]]:
    torch.set_num_threads(1)
    refused = WHOLE_PARAMETERS if engine == "deepspeed" else ()
    return {recipe: train(recipe, tokens, f"engine={engine}") for recipe in SMALLER if recipe not in refused}


def main(engine: str = "ddp", out: str = str(LOSSES), tokens: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if tokens is None:
            tokenize(Path(folder))
        found = train_all(engine, Path(tokens or folder))
    Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
