"""A release: opened by plain `transformers` elsewhere, equal to the trained encoder, or not there at all."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import make_run, make_text_run
from transformers import AutoImageProcessor, ViTConfig, ViTModel

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.objectives.base import stack
from pretrain.release.release import check_release, load_run_encoder, release_run
from pretrain.run.folder import load_run_config
from pretrain.weights.from_transformers import load_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    _, objective = make_run(folder)
    release_run(folder)
    return folder, objective.encoder.eval()


@pytest.fixture(scope="module")
def digits():
    dataset = open_dataset("sample:digits_test")
    return [dataset[i] for i in range(4)]


@pytest.mark.slow
def test_stranger_gets_the_trained_encoders_tokens_and_pixels(run, digits, tmp_path, run_as_stranger):
    folder, encoder = run
    for i, sample in enumerate(digits):
        Image.fromarray(sample["image"][..., 0]).save(tmp_path / f"{i}.png")
    body = """
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained(sys.argv[1]), AutoModel.from_pretrained(sys.argv[1]).eval()
pixels = processor([Image.open(f"{i}.png") for i in range(4)], return_tensors="pt")["pixel_values"]
with torch.no_grad():
    save_file({"pixels": pixels, "tokens": model(pixels).last_hidden_state.contiguous()}, "theirs.safetensors")
"""
    run_as_stranger(body, tmp_path, folder / "release")
    theirs = load_file(tmp_path / "theirs.safetensors")
    batch = stack([encoder.view(sample) for sample in digits])
    with torch.no_grad():
        torch.testing.assert_close(theirs["tokens"], encoder(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs["pixels"], encoder.pixels(batch["image"]), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_code_on_the_model_card_gives_the_pooled_features(run, digits, tmp_path, run_as_stranger):
    folder, encoder = run
    card = (folder / "release" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    Image.fromarray(digits[0]["image"][..., 0]).save(tmp_path / "picture.png")
    code = code.replace('folder = "."', "folder = sys.argv[1]") + "\nprint(*features[0].tolist())"
    theirs = torch.tensor([float(x) for x in run_as_stranger(code, tmp_path, folder / "release").split()])
    batch = stack([encoder.view(digits[0])])
    with torch.no_grad():
        torch.testing.assert_close(theirs, encoder.pool(encoder(batch), batch)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "objective"),
    [("bert", "mlm"), ("electra", "electra"), ("modernbert", "mlm"), ("gpt2", "clm"), ("llama", "clm")],
)
def test_text_release_opens_with_its_tokenizer_and_gives_the_pooled_features(
    tmp_path, family, objective, run_as_stranger
):
    _, made = make_text_run(tmp_path / "run", family, objective)
    encoder = made.encoder.eval()
    folder = release_run(tmp_path / "run")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace('folder = "."', "folder = sys.argv[1]") + "\nprint(*features[0].tolist())"
    theirs = torch.tensor([float(x) for x in run_as_stranger(code, tmp_path, folder).split()])
    batch = stack([encoder.view({"__key__": "0", "text": "Fellow citizens"})])
    with torch.no_grad():
        torch.testing.assert_close(theirs, encoder.pool(encoder(batch), batch)[0], atol=1e-5, rtol=1e-4)
    loaded = load_encoder(folder)
    assert replace(loaded.config, transformers=None) == encoder.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), encoder.parameters(), strict=True))


def test_model_card_tells_data_licence_and_recipe(run):
    card = (run[0] / "release" / "README.md").read_text()
    assert "12,000 samples" in card
    assert "CC BY-SA 3.0" in card
    assert f"mask_ratio: {load_run_config(run[0])['objective']['mask_ratio']}" in card
    assert str(run[0]) not in card


@pytest.mark.parametrize(("channels", "shape"), [(1, (50, 50)), (3, (50, 50)), (3, (37, 61)), (1, (64, 40))])
def test_stock_processor_sees_what_training_sees(tmp_path, channels, shape):
    config = ViTEncoderConfig(
        image_size=32, patch_size=16, num_channels=channels, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, image_mean=(0.4,), image_std=(0.2,),
    )  # fmt: skip
    encoder = ViTEncoder(config)
    encoder.save(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    stock = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    ours = encoder.pixels(stack([encoder.view({"__key__": "0", "image": image})])["image"])
    levels = (stock - ours).abs().max().item() * 0.2 * 255
    assert levels <= (1.01 if shape[0] != shape[1] else 1e-3)


def test_load_encoder_gives_back_weights_settings_and_what_trains(run):
    folder, encoder = run
    loaded = load_encoder(folder / "release")
    assert replace(loaded.config, transformers=None) == encoder.config
    for (name, ours), (loaded_name, theirs) in zip(
        encoder.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == loaded_name
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad


def test_transformers_own_folder_opens_with_its_own_epsilon(tmp_path):
    torch.manual_seed(0)
    sizes = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = ViTModel(ViTConfig(**sizes, intermediate_size=24, layer_norm_eps=1e-2)).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path).eval()
    assert encoder.config.pooling == "cls"
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = model((image - 0.5) / 0.5).last_hidden_state
        torch.testing.assert_close(encoder({"image": image}), expected, atol=1e-5, rtol=1e-5)


def copy_release(run, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    for path in (run[0] / "release").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_tensor_is_named(run, tmp_path):
    folder = copy_release(run, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layernorm\.weight is missing"):
        load_encoder(folder)


def test_folder_with_code_is_refused(run, tmp_path):
    folder = copy_release(run, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="auto_map"):
        load_encoder(folder)


def test_pickled_weights_are_refused(run, tmp_path):
    folder = copy_release(run, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*can run code"):
        load_encoder(folder)


def test_unknown_family_names_the_nearest(run, tmp_path):
    folder = copy_release(run, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "vitt"}))
    with pytest.raises(UserError, match="did you mean 'vit'"):
        load_encoder(folder)


def test_gate_refuses_other_weights_than_the_trained_ones(run, tmp_path):
    _, encoder = run
    copy = copy_release(run, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors["embeddings.cls_token"][0, 0, 0] += 0.01
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="differ from the trained encoder's"):
        check_release(encoder, open_dataset("sample:digits_test"), copy)


def test_nothing_stands_under_the_final_name_when_the_gate_refuses(run, tmp_path, monkeypatch):
    whole_sight = ViTEncoder.forward
    monkeypatch.setattr(ViTEncoder, "forward", lambda self, batch: whole_sight(self, batch) * 1.01)
    with pytest.raises(UserError, match="differ from the trained encoder's"):
        release_run(run[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_release_again_replaces_the_first_but_never_a_foreign_folder(run, tmp_path):
    out = tmp_path / "out"
    release_run(run[0], out)
    (out / "old").write_text("")
    release_run(run[0], out)
    assert not (out / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="is no release"):
        release_run(run[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


def test_broken_newest_checkpoint_is_passed_over(tmp_path):
    _, objective = make_run(tmp_path / "run")
    newer = tmp_path / "run" / "checkpoints" / "step_00000009"
    newer.mkdir()
    (newer / "manifest.json").write_text(json.dumps({"files": {"gone": {"bytes": 1, "sha256": ""}}}))
    trained = load_run_encoder(tmp_path / "run")
    assert trained.step == 5
    for ours, theirs in zip(objective.encoder.parameters(), trained.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_run_without_checkpoint_is_one_line(run, tmp_path, capfd):
    (tmp_path / "config.yaml").write_text((run[0] / "config.yaml").read_text())
    assert main(["release", str(tmp_path)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "no checkpoint yet" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "release").exists()


def test_secrets_never_reach_the_card(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0f" * 20)
    make_run(tmp_path / "run", "name=hf_" + "a" * 30, "tracking.wandb.entity=" + "0f" * 20)
    card = (release_run(tmp_path / "run") / "README.md").read_text()
    assert "hf_aaaa" not in card
    assert "0f0f0f" not in card
    assert "[redacted]" in card
