"""A run that began with somebody's weights is the same model in every place, and what was set beside them acts."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from text_models import make_tokenizer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from data_tools.errors import UserError
from data_tools.schema import build_section
from pretrain.config.load import build_config, load_config
from pretrain.config.show import to_dict
from pretrain.data import first_of, open_sources
from pretrain.encoders import encoder_class
from pretrain.encoders.hf_model import OWN_SETTINGS
from pretrain.release.release import release_run
from pretrain.run.folder import load_run_config
from pretrain.run.replay import replay
from pretrain.run.run import build_objective, run
from pretrain.tracking.metrics import read_metrics
from pretrain.weights.from_transformers import load_encoder, load_pretrained
from pretrain.weights.model_folder import resolve_encoder
from pretrain.weights.start import load_starting_weights
from tests.processes import QUIET

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WITHOUT_MLP = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
TEXT = {"vocab_size": 4096, "initializer_range": 0.2, "max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
THETA = {"rope_type": "default", "rope_theta": 500.0}
# Each has what no setting of ours says, and no default has.
MODELS = {
    "vit": (ViTModel, ViTConfig(**SMALL, image_size=28, patch_size=7, num_channels=1, hidden_act="relu",
                                layer_norm_eps=1e-2, initializer_range=0.2)),
    "convnextv2": (ConvNextV2Model, ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_channels=1,
                                                     image_size=28, hidden_act="relu", layer_norm_eps=1e-2)),
    "dinov2": (Dinov2Model, Dinov2Config(**WITHOUT_MLP, image_size=56, patch_size=7, num_channels=1, hidden_act="relu",
                                         layer_norm_eps=1e-2, initializer_range=0.2, layerscale_value=0.5)),
    "dinov3_vit": (DINOv3ViTModel, DINOv3ViTConfig(**SMALL, image_size=28, patch_size=7, num_channels=1,
                                                   num_register_tokens=2, rope_theta=50.0, layer_norm_eps=1e-2,
                                                   initializer_range=0.2, pos_embed_rescale=2.0)),
    "swin": (SwinModel, SwinConfig(image_size=28, patch_size=7, num_channels=1, embed_dim=8, depths=[2, 1],
                                   num_heads=[1, 2], window_size=2, layer_norm_eps=1e-2, initializer_range=0.2,
                                   use_absolute_embeddings=True)),
    "resnet": (ResNetModel, ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                         layer_type="basic", hidden_act="gelu", downsample_in_first_stage=True)),
    "bert": (BertModel, BertConfig(**SMALL, **TEXT, layer_norm_eps=1e-1, hidden_dropout_prob=0.2)),
    "electra": (ElectraModel, ElectraConfig(**SMALL, **TEXT, embedding_size=8, layer_norm_eps=1e-1)),
    "modernbert": (ModernBertModel, ModernBertConfig(
        **{**SMALL, "num_hidden_layers": 3}, **TEXT, norm_eps=1e-2, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        bos_token_id=5, eos_token_id=5, rope_parameters={"full_attention": THETA, "sliding_attention": THETA})),
    "gpt2": (GPT2Model, GPT2Config(vocab_size=4096, n_embd=16, n_layer=2, n_head=2, n_positions=128,
                                   initializer_range=0.2, scale_attn_by_inverse_layer_idx=True)),
    "llama": (LlamaModel, LlamaConfig(**SMALL, **TEXT, rms_norm_eps=1e-2, hidden_act="gelu",
                                      rope_parameters=LLAMA3)),
}  # fmt: skip
IMAGES = ("vit", "convnextv2", "dinov2", "dinov3_vit", "swin", "resnet")
RECIPES = {**dict.fromkeys(IMAGES, "autoencoder_digits"), "bert": "mlm_sotu", "electra": "mlm_sotu",
           "modernbert": "mlm_sotu", "gpt2": "clm_sotu", "llama": "clm_sotu"}  # fmt: skip
QUICK = ("train.global_batch_size=4", *QUIET, "tracking.log_every=1",
         "checkpoint.every=1", "checkpoint.keep=3", "checkpoint.asynchronous=false",
         "schedule={name: constant}", "optimizer.lr=1e-6")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A `transformers` folder of each family."""
    root = tmp_path_factory.mktemp("models")
    for family, (model, config) in MODELS.items():
        torch.manual_seed(1)
        model(config).save_pretrained(root / family)
    return {family: root / family for family in MODELS}


def configure(family: str, folder: Path, run_dir: Path, *more: str):
    values = yaml.safe_load(Path(f"pretrain/recipes/{RECIPES[family]}.yaml").read_text()) | {"encoder": {}}
    recipe = run_dir.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(values))
    length = ["encoder.image_size=28"] if family in IMAGES else ["encoder.max_length=32"]
    started = [f"encoder.from_pretrained={folder}", f"run_dir={run_dir}", *length, *QUICK, *more]
    return load_config(str(recipe), started)[0]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder) if line["kind"] == "train"}


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_resumed_replayed_and_released_it_is_the_model_that_began(folders, tmp_path, family):
    config = configure(family, folders[family], tmp_path / "run", "train.steps=3")
    run(config)
    whole = losses(tmp_path / "run")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    moved = folders[family].rename(tmp_path / "moved")
    try:
        saved = build_config(load_run_config(tmp_path / "run"))
        assert saved == config, "the run folder says all of it"
        run(saved)
        found = replay(tmp_path / "run", 3, [])
        out = release_run(tmp_path / "run")
    finally:
        moved.rename(folders[family])
    assert losses(tmp_path / "run") == whole
    assert found["values"]["loss"] == whole[3]
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (folders[family], out))
    ours = ("architectures", "dtype", "transformers_version", "tie_word_embeddings")
    assert {k: after.get(k) for k in before if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }


def test_what_a_run_records_builds_the_model_that_began(folders, tmp_path):
    for family, folder in folders.items():
        config = configure(family, folder, tmp_path / family, "train.steps=3")
        first = build_objective(config, first_of(open_sources(config.data)))
        load_starting_weights(config, first)
        saved = yaml.safe_load(yaml.safe_dump(to_dict(config)))
        saved["encoder"]["from_pretrained"] = "gone"
        again = build_objective(build_config(saved), first_of(open_sources(config.data)))
        assert again.encoder.model.config.to_dict() == first.encoder.model.config.to_dict()
        theirs = MODELS[family][1].to_dict()
        ours = again.encoder.model.config.to_dict()
        free = ("dtype", "architectures", "_name_or_path", "tie_word_embeddings", "transformers_version")
        assert {k: ours[k] for k in theirs if k not in free} == {
            k: theirs[k] for k in theirs if k not in free
        }


# Another value for each setting that `transformers` has by the same name. What changes shapes is refused.
OTHER = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3, "attention_dropout": 0.3, "mlp_dropout": 0.3,
         "embedding_dropout": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.3, "attn_pdrop": 0.3, "initializer_range": 0.5,
         "hidden_act": "relu", "activation_function": "relu", "rms_norm_eps": 0.5, "local_attention": 64,
         "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 1, "max_position_embeddings": 256,
         "n_positions": 256, "image_size": 56, "patch_size": 14, "num_channels": 3, "hidden_size": 32, "n_embd": 32,
         "num_hidden_layers": 1, "n_layer": 1, "intermediate_size": 32, "n_inner": 32, "vocab_size": 4100,
         "hidden_sizes": [8, 32], "depths": [1, 2], "mlp_ratio": 2, "num_register_tokens": 3, "embed_dim": 16,
         "num_heads": [2, 2], "window_size": 1, "drop_path_rate": 0.3, "embedding_size": 4,
         "layer_type": "bottleneck"}  # fmt: skip
ELSEWHERE = {"rope_theta": 77.0, "global_attn_every_n_layers": 2}


def setting_cases():
    for family in MODELS:
        known = MODELS[family][1].to_dict()
        for f in fields(encoder_class(family).Config):
            free = (*OWN_SETTINGS, *encoder_class(family).derived)
            if f.name in ELSEWHERE or (f.name in known and f.name not in free):
                yield family, f.name


def test_every_setting_given_beside_a_folder_acts_or_is_refused(folders):
    acted = []
    for family, name in setting_cases():
        value = {**OTHER, **ELSEWHERE}[name]
        try:
            encoder = continued(folders[family], **{name: value})
        except UserError as error:
            assert "settings" in str(error) or "encoder" in str(error), (family, name)
            continue
        acted.append(name)
        built = encoder.model.config
        assert plain_setting(built, name) == value, (family, name)
        assert "path" not in name or value in paths_of(encoder.model), (family, name)
        if "dropout" in name or name.endswith("drop"):
            assert dropouts_of(encoder.model, name) >= {value}, (family, name)
    assert {n for n in OTHER if "drop" in n or "_act" in n} | set(ELSEWHERE) <= set(acted)


def plain_setting(built, name):
    if name == "rope_theta":
        return built.rope_parameters["rope_theta"]
    if name == "global_attn_every_n_layers":
        return built.layer_types.index("full_attention", 1)
    return getattr(built, name)


def dropouts_of(model, name):
    """The rates of a model's dropout modules, and those that its attention layers hold as numbers."""
    modules = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    numbers = [getattr(m, attribute) for m in model.modules() for attribute in ("attention_dropout", "attn_dropout")
               if isinstance(getattr(m, attribute, None), float)]  # fmt: skip
    return {*modules, *numbers}


def paths_of(model):
    """The rates at which a model leaves out blocks."""
    return {m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")}


def continued(folder, **own):
    settings = resolve_encoder({"from_pretrained": str(folder), **own})
    cls = encoder_class(settings["name"])
    encoder = cls(build_section(cls.Config, settings, "encoder"), None)
    load_pretrained(encoder, folder)
    return encoder


def test_what_no_setting_says_can_be_set_in_words_of_transformers(folders):
    encoder = continued(folders["bert"], transformers={"layer_norm_eps": 1e-4})
    assert encoder.model.config.layer_norm_eps == 1e-4
    assert encoder.model.config.hidden_dropout_prob == 0.2, "the rest is the folder's"


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("bert", {"hidden_size": 8}, "give encoder.hidden_size"),
        ("bert", {"layer_norm_epsilon": 8}, "did you mean 'layer_norm_eps'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 8.0}},
            "give encoder.rope_theta",
        ),
        ("bert", {"layer_norm_eps": "much"}, "layer_norm_eps"),
    ],
)
def test_words_that_would_be_ignored_are_refused(folders, family, more, message):
    with pytest.raises(UserError, match=message):
        continued(folders[family], transformers=more)


def test_an_old_run_takes_what_it_trained_with_from_the_folder_while_it_is_there(folders, tmp_path, caplog):
    saved = to_dict(configure("bert", folders["bert"], tmp_path / "run", "train.steps=3"))
    del saved["encoder"]["transformers"]
    old = build_config(saved)
    assert old.encoder.transformers["layer_norm_eps"] == 1e-1
    assert "has not kept its config.json; taken as it lies there" in caplog.text
    saved["encoder"]["from_pretrained"] = str(tmp_path / "gone")
    assert build_config(saved).encoder.transformers is None
    assert "is not there any more" in caplog.text


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_cut_weights_pointers_and_half_copied_folders_are_a_line_each(folders, tmp_path):
    whole = (folders["bert"] / "model.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for number, (content, message) in enumerate([
        (whole[:-5], "is cut"), (whole[:100], "no whole safetensors file"), (b"", "no whole safetensors file"),
        (pointer, "Git-LFS pointer"), (whole[:8] + b"?" * (len(whole) - 8), "table of tensors"),
    ]):  # fmt: skip
        folder = copied(folders["bert"], tmp_path / str(number))
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=message) as refused:
            load_encoder(folder)
        assert "\n" not in str(refused.value)
    index = {
        "metadata": {},
        "weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"},
    }
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00001-of-00002\.safetensors"):
        load_encoder(folder)


def test_a_config_that_transformers_cannot_read_is_a_line(folders, tmp_path):
    folder = copied(folders["bert"], tmp_path / "bert")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "hidden_size": "wide"}))
    with pytest.raises(UserError, match=r"config\.json: transformers cannot read it"):
        load_encoder(folder)


def test_an_old_gpt2_with_its_mask_among_the_weights_loads(folders, tmp_path):
    folder = copied(folders["gpt2"], tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    old, new = load_encoder(folder), load_encoder(folders["gpt2"])
    torch.testing.assert_close(dict(old.named_parameters()), dict(new.named_parameters()))


def test_a_layer_less_is_refused_unless_it_is_allowed(folders):
    with pytest.raises(UserError, match="leave those settings out"):
        continued(folders["bert"], num_hidden_layers=1)
    settings = resolve_encoder({"from_pretrained": str(folders["bert"]), "num_hidden_layers": 1})
    cls = encoder_class("bert")
    encoder = cls(build_section(cls.Config, settings, "encoder"), None)
    report = load_pretrained(encoder, folders["bert"], ("encoder.layer.1.*",))
    assert len(encoder.model.encoder.layer) == 1
    assert any(name.startswith("encoder.layer.1.") for name in report.unused)


def test_weights_of_a_run_with_another_function_are_told(folders, tmp_path):
    first = configure("bert", folders["bert"], tmp_path / "first", "train.steps=1")
    run(first)
    other = to_dict(replace(first, init_from=str(tmp_path / "first"), run_dir=str(tmp_path / "second")))
    other["encoder"] |= {"from_pretrained": None, "transformers": None, "num_attention_heads": 4}
    config = build_config(other)
    objective = build_objective(config, first_of(open_sources(config.data)))
    (report,) = load_starting_weights(config, objective)
    text = str(report)
    assert "differs encoder.num_attention_heads: 2 there, 4 here" in text
    assert "differs encoder.transformers.layer_norm_eps: 0.1 there, None here" in text


def test_a_release_has_the_modes_of_any_new_file(tmp_path):
    from tiny_run import make_run

    before = os.umask(0o027)
    try:
        make_run(tmp_path / "run")
        out = release_run(tmp_path / "run")
        (tmp_path / "new").write_text("")
        expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {expected}


def test_another_tokenizer_of_the_same_size_is_found_whatever_its_layout(tmp_path):
    dataset = make_tokenizer(tmp_path / "a")
    from pretrain.encoders.text.tokenizer import fingerprint_of

    file = tmp_path / "a" / "tokenizer.json"
    before, values = fingerprint_of(dataset.folder), json.loads(file.read_text())
    file.write_text(json.dumps({**values, "truncation": {"max_length": 7}}, indent=2))
    assert fingerprint_of(tmp_path / "a") == before
    ids = values["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(values))
    assert fingerprint_of(tmp_path / "a") != before
