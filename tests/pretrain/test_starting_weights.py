"""A new run starts from a folder's weights or another run's; what does not fit is fitted, told, or refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from text_models import FAMILIES, SIZES, make_encoder, make_tokenizer, packed_rows
from tiny_run import SMALL, make_run
from transformers import BertConfig, BertModel, ConvNextV2Config, ConvNextV2Model, ViTConfig, ViTModel

from data_tools.errors import UserError
from data_tools.schema import build_section
from pretrain.config.load import load_config
from pretrain.encoders import encoder_class
from pretrain.release.release import release_run
from pretrain.run.run import run
from pretrain.weights.fit import fit_channels, interpolate_grid
from pretrain.weights.from_transformers import load_encoder, load_pretrained
from pretrain.weights.model_folder import resolve_encoder
from pretrain.weights.start import load_starting_weights
from tests.processes import QUIET

QUICK = ("train.steps=2", "train.global_batch_size=8", *QUIET,
         "tracking.log_every=1")  # fmt: skip


def continued(folder, dataset=None, **own):
    """An encoder of the folder's family and settings, `own` apart, with its weights."""
    settings = resolve_encoder({"from_pretrained": str(folder), **own})
    cls = encoder_class(settings["name"])
    torch.manual_seed(5)
    encoder = cls(build_section(cls.Config, settings, "encoder"), dataset)
    return encoder, load_pretrained(encoder, folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(1)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                       image_size=32, patch_size=8, layer_norm_eps=1e-3)  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_stock_transformers_vit_goes_on_with_its_own_outputs(vit):
    folder, model = vit
    encoder, report = continued(folder)
    image = torch.rand(2, 3, 32, 32)
    expected = model(pixel_values=encoder.pixels(image)).last_hidden_state
    torch.testing.assert_close(encoder({"image": image}), expected)
    assert report.loaded == len(model.state_dict())
    assert not report.fitted


def test_positions_are_interpolated_and_channels_summed(vit):
    folder, model = vit
    encoder, report = continued(folder, image_size=48, num_channels=1)
    assert len(report.fitted) == 2
    before = model.embeddings.position_embeddings
    after = encoder.model.embeddings.position_embeddings
    assert after.shape == (1, 37, 16)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    grid = torch.nn.functional.interpolate(
        before[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic"
    )
    torch.testing.assert_close(after[0, 1:].T.reshape(16, 6, 6), grid[0])
    # A grey image gives the patches that its three equal channels gave.
    grey = torch.rand(1, 1, 32, 32)
    ours = torch.nn.functional.conv2d(
        grey, encoder.model.embeddings.patch_embeddings.projection.weight, stride=8
    )
    theirs = torch.nn.functional.conv2d(
        grey.expand(-1, 3, -1, -1), model.embeddings.patch_embeddings.projection.weight, stride=8
    )
    torch.testing.assert_close(ours, theirs)
    assert "interpolated over the grid" in str(report)
    assert len(encoder.config.image_mean) == 1
    assert encoder({"image": torch.rand(1, 1, 48, 48)}).shape == (1, 37, 16)


def test_the_same_grid_is_the_same_positions():
    positions = torch.randn(1, 17, 8)
    torch.testing.assert_close(interpolate_grid(positions, (4, 4), (4, 4)), positions)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_equal_channels_keep_their_response(channels):
    kernels = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(fit_channels(kernels, channels).sum(1), kernels.sum(1))


def test_a_convolutional_encoder_goes_on_with_more_channels(tmp_path):
    model = ConvNextV2Model(
        ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
    ).eval()
    model.save_pretrained(tmp_path)
    encoder, report = continued(tmp_path, num_channels=6)
    assert report.fitted
    assert encoder({"image": torch.rand(1, 6, 32, 32)}).shape[2] == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_family_goes_on_with_more_positions(tmp_path, family):
    dataset = make_tokenizer(tmp_path / "tokenizer")
    before = make_encoder(family, dataset)
    before.save(tmp_path / "model")
    longer = "n_positions" if "n_positions" in SIZES[family] else "max_position_embeddings"
    after, report = continued(tmp_path / "model", dataset, **{longer: 96})
    assert bool(report.fitted) == (family in ("bert", "electra", "gpt2"))
    rows = packed_rows(before.vocab_size)
    if not report.fitted:  # rotary positions need no table
        torch.testing.assert_close(after.eval()(rows), before(rows), rtol=1e-4, atol=1e-5)
    assert after.max_positions == 96


def test_a_stock_bert_with_heads_goes_on_and_its_norms_are_its_own(tmp_path):
    model = BertModel(BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=32, layer_norm_eps=1e-3)).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    encoder, report = continued(tmp_path)
    assert report.unused == ["pooler.dense.bias", "pooler.dense.weight"]
    assert encoder.model.encoder.layer[0].output.LayerNorm.eps == 1e-3


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"hidden_size": 24, "num_attention_heads": 2}, "leave those settings out"),
        ({"name": "bert"}, "holds a 'vit'"),
        ({"from_pretrained": "nowhere"}, "not an encoder"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(vit, own, message):
    with pytest.raises(UserError, match=message):
        continued(vit[0], **own) if "from_pretrained" not in own else resolve_encoder(own)


def test_another_tokenizer_is_refused(tmp_path):
    dataset = make_tokenizer(tmp_path / "a")
    make_encoder("bert", dataset).save(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "truncation": None}, indent=3))
    continued(tmp_path / "model", dataset)  # laid out anew, it is the same tokenizer
    values["model"]["merges"].pop()
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="another tokenizer"):
        continued(tmp_path / "model", dataset)


def test_a_run_starts_from_a_release_and_goes_on_without_it(tmp_path):
    make_run(tmp_path / "first")
    folder = release_run(tmp_path / "first")
    settings = ["objective.decoder_hidden_size=8", "objective.decoder_num_hidden_layers=1",
                "objective.decoder_num_attention_heads=2", *SMALL[:3], f"encoder.from_pretrained={folder}",
                f"run_dir={tmp_path / 'second'}", *QUICK]  # fmt: skip
    config, _ = load_config("mae_digits", settings)
    run(config)
    events = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    loaded = next(event for event in events if event["kind"] == "loaded")
    assert loaded["tensors"] == len(load_encoder(folder).model.state_dict())
    folder.rename(tmp_path / "elsewhere")
    from pretrain.config.load import build_config
    from pretrain.config.show import to_dict

    saved = to_dict(config)
    saved["train"]["steps"] = 2
    run(build_config(saved))  # nothing left to do, and nothing to look for


def test_a_run_starts_from_another_runs_checkpoint(tmp_path):
    _, first = make_run(tmp_path / "first")
    config, _ = load_config(
        "mae_digits", [*SMALL, f"run_dir={tmp_path / 'second'}", "seed=9", f"init_from={tmp_path / 'first'}"]
    )
    from pretrain.data import first_of, open_sources
    from pretrain.run.run import build_objective

    second = build_objective(config, first_of(open_sources(config.data)))
    (report,) = load_starting_weights(config, second)
    assert report.loaded > 0
    for name, role in first.roles.items():
        for key, value in role.state_dict().items():
            torch.testing.assert_close(second.roles[name].state_dict()[key], value, msg=f"{name}.{key}")


def test_another_objective_takes_the_encoder_where_it_is_allowed(tmp_path):
    _, first = make_run(tmp_path / "first")
    deeper = [*SMALL, f"run_dir={tmp_path / 'second'}", f"init_from={tmp_path / 'first'}",
              "objective.decoder_num_hidden_layers=2"]  # fmt: skip
    from pretrain.data import first_of, open_sources
    from pretrain.run.run import build_objective

    config, _ = load_config("mae_digits", deeper)
    second = build_objective(config, first_of(open_sources(config.data)))
    with pytest.raises(UserError, match=r"does not fit; .* allow_keys=\['decoder\.\*'\]") as refused:
        load_starting_weights(config, second)
    lacking = sorted(f"decoder.{n}" for n in second.roles["decoder"].state_dict() if ".1." in n)
    assert re.findall(r"(\S+) is missing", str(refused.value)) == lacking, "every one is named"
    config, _ = load_config("mae_digits", [*deeper, "allow_keys=['decoder.*']"])
    (report,) = load_starting_weights(config, second)
    assert report.missing == lacking
    torch.testing.assert_close(second.encoder.state_dict(), first.encoder.state_dict())


def test_a_broken_checkpoint_is_named(tmp_path):
    make_run(tmp_path / "first")
    config, _ = load_config(
        "mae_digits", [*SMALL, f"init_from={tmp_path / 'first'}", f"run_dir={tmp_path / 'b'}"]
    )
    shutil.rmtree(tmp_path / "first" / "checkpoints")
    with pytest.raises(UserError, match="init_from"):
        load_starting_weights(config, None)
