"""Encoders of images: published folders open, images need not be square, and pairs that cannot be are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTModel,
)

from data_tools.errors import UserError
from data_tools.schema import build_section
from pretrain.config.load import load_config
from pretrain.encoders import ENCODERS, encoder_class
from pretrain.objectives import OBJECTIVES
from pretrain.objectives.autoencoder import Autoencoder
from pretrain.objectives.bigan import BiGAN
from pretrain.objectives.context_encoder import ContextEncoder
from pretrain.objectives.gan import GAN
from pretrain.objectives.mae import MAE
from pretrain.objectives.pairs import all_pairs
from pretrain.objectives.vae import VAE
from pretrain.objectives.vqvae import VQVAE
from pretrain.optim.groups import layer_ratios, trained_parameters
from pretrain.weights.from_transformers import load_encoder, load_pretrained
from pretrain.weights.model_folder import read_settings, resolve_encoder

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP_224 = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, **IMAGENET}
PUBLISHED = {
    # config.json of facebook/dinov2-base on the Hub; 86.6 M parameters (Oquab et al. 2023, table 17: 86 M).
    "dinov2": ({"attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_size": 768,
                "hidden_dropout_prob": 0.0, "image_size": 518, "initializer_range": 0.02, "layer_norm_eps": 1e-06,
                "layerscale_value": 1.0, "mlp_ratio": 4, "model_type": "dinov2", "num_attention_heads": 12,
                "num_channels": 3, "num_hidden_layers": 12, "patch_size": 14, "qkv_bias": True,
                "use_swiglu_ffn": False}, CROP_224, 86_580_480),
    # facebook/dinov3-vits16-pretrain-lvd1689m: transformers' defaults and four registers, as its model card says; 21 M.
    "dinov3_vit": ({"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
                    "image_size": 224, "patch_size": 16, "num_register_tokens": 4, "rope_theta": 100.0,
                    "key_bias": False, "layer_norm_eps": 1e-05, "pos_embed_rescale": 2.0, "model_type": "dinov3_vit"},
                   {"size": {"height": 224, "width": 224}, **IMAGENET}, 21_596_544),
    # microsoft/swin-tiny-patch4-window7-224; torchvision's swin_t has 28,288,354, 769,000 of them in its classifier.
    "swin": ({"depths": [2, 2, 6, 2], "drop_path_rate": 0.1, "embed_dim": 96, "encoder_stride": 32, "image_size": 224,
              "layer_norm_eps": 1e-05, "mlp_ratio": 4.0, "model_type": "swin", "num_channels": 3,
              "num_heads": [3, 6, 12, 24], "patch_size": 4, "path_norm": True, "qkv_bias": True, "window_size": 7,
              "use_absolute_embeddings": False}, {"size": 224, **IMAGENET}, 28_288_354 - 769_000),
    # microsoft/resnet-50; torchvision's resnet50 has 25,557,032, 2,049,000 of them in its classifier.
    "resnet": ({"depths": [3, 4, 6, 3], "downsample_in_first_stage": False, "embedding_size": 64, "hidden_act": "relu",
                "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck", "model_type": "resnet",
                "num_channels": 3}, {"size": 224, "crop_pct": 0.875, **IMAGENET}, 25_557_032 - 2_049_000),
}  # fmt: skip
MODELS = {
    "dinov2": (Dinov2Config, Dinov2Model, {"num_hidden_layers": 1}),
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel, {"num_hidden_layers": 1}),
    "swin": (SwinConfig, SwinForImageClassification, {"depths": [1, 1, 1, 1], "embed_dim": 24}),
    "resnet": (
        ResNetConfig,
        ResNetForImageClassification,
        {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 64, 64]},
    ),
}
OLD_NAMES = {
    "dinov2": {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
               "o_proj": "output.dense"},
    "dinov3_vit": {"model.layer": "layer"},
    "swin": {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "o_proj": "output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
             "relative_position_bias.relative_position_bias_table": "self.relative_position_bias_table"},
    "resnet": {},
}  # fmt: skip
"""What the published files call parameters whose names `transformers` has changed since."""


def write_folder(folder, family, **smaller):
    config, processor, _ = PUBLISHED[family]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **smaller}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_configuration_has_the_published_number_of_parameters(family, tmp_path):
    write_folder(tmp_path, family)
    settings = read_settings(tmp_path)
    cls = encoder_class(family)
    config = build_section(cls.Config, settings, "encoder")
    assert config.image_size == 224
    with torch.device("meta"):
        encoder = cls(config)
    assert sum(p.numel() for p in encoder.model.parameters()) == PUBLISHED[family][2]
    assert config.image_mean == tuple(IMAGENET["image_mean"])
    default = cls.Config(name=family)  # the family's own sizes are the published ones
    with torch.device("meta"):
        own = sum(p.numel() for p in cls(default).model.parameters())
    positions = 768 * (37**2 - 16**2) if family == "dinov2" else 0
    assert own == PUBLISHED[family][2] - positions


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_a_folder_as_it_is_published_opens_with_its_own_outputs(family, tmp_path):
    hf_config, hf_model, smaller = MODELS[family]
    torch.manual_seed(1)
    model = hf_model(hf_config(**{**PUBLISHED[family][0], **smaller})).eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in OLD_NAMES[family].items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    write_folder(tmp_path, family, **smaller)
    encoder = load_encoder(tmp_path)
    image = torch.rand(1, 3, 224, 224)
    expected = getattr(model, family, model)(encoder.pixels(image)).last_hidden_state
    expected = expected.flatten(2).mT if expected.ndim == 4 else expected
    torch.testing.assert_close(encoder.eval()({"image": image}), expected, rtol=1e-4, atol=1e-5)
    kept = {k: v for k, v in tensors.items() if not k.endswith(("num_batches_tracked", "running_mean"))}
    save_file(dict(list(kept.items())[:-4]), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is missing"):
        load_encoder(tmp_path)


SMALL = {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}
PATCHES = {**SMALL, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 7}
WIDE = {
    "vit": PATCHES,
    "dinov2": PATCHES,
    "dinov2_with_registers": PATCHES,
    "dinov3_vit": PATCHES,
    "swin": {
        **SMALL,
        "patch_size": 7,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    "swinv2": {
        **SMALL,
        "patch_size": 7,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    "resnet": {
        **SMALL,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "convnextv2": {**SMALL, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "mlp": {**SMALL, "hidden_sizes": [16]},
    "cnn": {**SMALL, "hidden_sizes": [8, 16], "residual_blocks": 1},
}


def make_encoder(family, **more):
    cls = ENCODERS[family]
    return cls(build_section(cls.Config, {"name": family, **WIDE[family], **more}, "encoder"))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("family", WIDE)
def test_images_may_be_wide_and_have_any_channels(family, channels, tmp_path):
    encoder = make_encoder(family, image_size=[28, 56], num_channels=channels).eval()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 44, channels), dtype=np.uint8) for _ in range(3)]
    samples = [{"__key__": str(i), "image": picture} for i, picture in enumerate(pictures)]
    batch = encoder.collate([encoder.view(sample) for sample in samples])
    assert batch["image"].shape == (3, channels, 28, 56)
    with torch.no_grad():
        tokens = encoder(batch)
        rows, columns = encoder.token_grid
        assert tokens.shape == (3, getattr(encoder, "lead", 0) + rows * columns, encoder.dim)
        assert encoder.pool(tokens, batch).shape == (3, encoder.dim)
        if family in ("mlp", "cnn"):  # not in transformers
            return
        encoder.save(tmp_path)
        opened = AutoModel.from_pretrained(tmp_path).eval()
        theirs = opened(**encoder.plain_inputs(batch)).last_hidden_state
    torch.testing.assert_close(
        theirs.flatten(2).mT if theirs.ndim == 4 else theirs, tokens, rtol=1e-4, atol=1e-5
    )
    encoder.check_processor(tmp_path, samples)
    if channels == 5:  # more than Pillow has
        done = {}
        exec(encoder.card_code().replace('"."', repr(str(tmp_path))), done)
        with torch.no_grad():
            expected = encoder.pool(encoder({"image": done["image"]}), batch)
        torch.testing.assert_close(done["features"].flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert tuple(build_section(type(encoder.config), read_settings(tmp_path), "encoder").image_size) == (
        28,
        56,
    )


DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
PAIRS = [
    (MAE, "dinov3_vit", {**DECODER, "crop_scale": (0.3, 1)}),
    (Autoencoder, "swin", {"decoder_width": 8}),
    (GAN, "swin", {"generator_width": 8}),
    (VAE, "cnn", {"decoder_width": 8}),
    (VAE, "mlp", {"decoder_width": 8, "decoder": "mlp"}),
    (VQVAE, "cnn", {"decoder_width": 8}),
    (BiGAN, "resnet", {"generator_width": 8, "discriminator_width": 8, "hidden_sizes": (16,)}),
    (BiGAN, "swinv2", {"networks": "mlp", "hidden_sizes": (16,)}),
    (ContextEncoder, "cnn", {"hole_size": 14, "hole": "random", "bottleneck_size": 16, "width": 8}),
]


@pytest.mark.parametrize(("objective", "family", "settings"), PAIRS)
def test_objectives_take_wide_images(objective, family, settings):
    encoder = make_encoder(family, image_size=[28, 56])
    learner = objective(objective.Config(**settings), encoder, None)
    picture = np.random.default_rng(1).integers(0, 256, (31, 57, 1), dtype=np.uint8)
    sample = {"__key__": "a", "image": picture}
    batch = learner.collate([learner.example(sample, np.random.default_rng(i)) for i in range(2)])
    for phase in learner.phases():
        if not phase.fp32:
            assert learner.loss(phase, batch).sum.isfinite()
    assert learner.picture(batch).encode()


def test_a_random_crop_has_about_the_shape_of_the_view():
    from pretrain.augment.image import random_box

    rng = np.random.default_rng(0)
    boxes = [random_box(100, 400, rng, (28, 112), (0.2, 1)) for _ in range(50)]
    aspects = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 3 - 1e-6 <= min(aspects) <= max(aspects) <= 16 / 3 + 1e-6


def test_positions_of_as_many_patches_on_another_grid_are_interpolated(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "patch_size": 7, "image_size": 28}  # fmt: skip
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    settings = resolve_encoder({"from_pretrained": str(tmp_path), "image_size": [14, 56]})
    encoder = ENCODERS["vit"](build_section(ENCODERS["vit"].Config, settings, "encoder"))
    report = load_pretrained(encoder, tmp_path)
    assert len(report.fitted) == 1, "16 places before, 16 now, and others"
    square = load_encoder(tmp_path).eval()
    image = torch.rand(1, 3, 14, 56)
    torch.testing.assert_close(encoder.eval()({"image": image}), square({"image": image}))


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("swin", {"image_size": 28, "window_size": 4}, "take encoder.window_size=2"),
        ("swin", {"image_size": 30}, "patches of 7×7 do not fill them"),
        ("swin", {"num_heads": [3, 2]}, "encoder.num_heads.0=3: does not divide"),
        ("swin", {"depths": [1]}, "needs one number for each"),
        ("resnet", {"depths": [1]}, "needs one number for each"),
        ("dinov2", {"image_size": [28, 30]}, "does not divide encoder.image_size"),
        ("dinov2", {"position_size": 30}, "must be a multiple of 7"),
        ("dinov3_vit", {"num_attention_heads": 8}, "a multiple of 4"),
        ("vit", {"image_size": [28, 0]}, "encoder.image_size.1=0: must be greater than 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(family, more, message):
    with pytest.raises(UserError, match=message):
        make_encoder(family, **{"image_size": 28, **more})


def test_impossible_pairs_are_refused_with_the_reason_and_the_nearest():
    with pytest.raises(UserError) as refused:
        MAE(MAE.Config(), make_encoder("swin", image_size=28), None)
    assert str(refused.value) == (
        "encoder.name='swin': MAE drops patches, but its windows need all their places; use encoder.name=vit, dinov2, "
        f"dinov2_with_registers or dinov3_vit or objective.name={'simmim' if 'simmim' in OBJECTIVES else 'autoencoder'}"
    )
    with pytest.raises(UserError, match="batch norm mixes them; set objective"):
        GAN(GAN.Config(), make_encoder("resnet", image_size=28), None)
    GAN(GAN.Config(), make_encoder("resnet", image_size=28, norm="frozen"), None)
    pairs = all_pairs()
    assert pairs["mae"]["dinov3_vit"] is None and pairs["autoencoder"]["resnet"] is None
    assert pairs["mlm"]["vit"] and pairs["gan"]["bert"] and pairs["clm"]["bert"]
    assert not any(pairs["attribute"].values())
    for name in ("vae", "vqvae", "bigan", "context_encoder"):
        assert pairs[name]["bert"] and pairs[name]["cnn"] is None
    assert pairs["mae"]["cnn"] == "MAE drops patches, but a convolution needs all its neighbours"


def test_a_context_encoder_paints_out_places_all_over_a_wide_image():
    encoder = make_encoder("cnn", image_size=[28, 56])
    objective = ContextEncoder(ContextEncoder.Config(hole_size=14, hole="random"), encoder, None)
    sample = {"__key__": "a", "image": np.full((28, 56, 1), 255, np.uint8)}
    corners = [objective.example(sample, np.random.default_rng(i))["corner"] for i in range(99)]
    assert np.max(corners, axis=0).tolist() == [14, 42]
    with pytest.raises(UserError, match=r"must be smaller than encoder\.image_size="):
        ContextEncoder(ContextEncoder.Config(hole_size=28), encoder, None)


def test_bigan_penalty_is_of_each_image_by_itself_behind_batch_norm():
    """It is the discriminator's, which has none; what the encoder found is a constant in it."""
    objective = BiGAN(BiGAN.Config(hidden_sizes=(16,)), make_encoder("resnet", image_size=28), None)
    batch = {"image": torch.rand(3, 1, 28, 28)}
    encoded = objective.encode_latent(batch).detach()
    found = objective.penalty(batch).sum
    one_by_one = 0.0
    for image, latent in zip(batch["image"], encoded, strict=True):
        x = (image * 2 - 1).requires_grad_()
        logit = objective.roles["discriminator"]((x[None] + 1) / 2, latent[None])
        one_by_one += torch.autograd.grad(logit.sum(), x)[0].pow(2).sum() * (1 / 2 * 16)
    torch.testing.assert_close(found.detach(), one_by_one)


@pytest.mark.parametrize("family", ["cnn", "mlp", "convnextv2", "resnet"])
@torch.no_grad()
def test_what_is_hidden_by_a_colour_is_not_seen(family):
    encoder = make_encoder(family, image_size=[28, 56]).eval()
    assert "masked" in encoder.gives
    image, mask = torch.rand(2, 1, 28, 56), torch.rand(2, 4, 8) < 0.5
    pixels = mask.repeat_interleave(7, 1).repeat_interleave(7, 2)[:, None]
    other = torch.where(pixels, torch.rand_like(image), image)
    colour = torch.tensor([0.3])
    assert colour.numel() == encoder.mask_token_size
    assert not encoder({"image": other}).allclose(encoder({"image": image}))
    for token in (None, colour):
        seen = encoder({"image": image}, mask=mask, mask_token=token)
        torch.testing.assert_close(encoder({"image": other}, mask=mask, mask_token=token), seen)
    painted = torch.where(pixels, encoder.image_mean + 0.3 * encoder.image_std, image)
    torch.testing.assert_close(encoder({"image": painted}), seen)


def test_turning_needs_square_images():
    from pretrain.data import first_of, open_sources
    from pretrain.run.run import build_objective

    derived = {"turn": {"derive": "rotation"}}
    config, _ = load_config(
        "attribute_digits", ["encoder.image_size=[28, 56]", f"objective.attributes={derived}"]
    )
    with pytest.raises(UserError, match="not square fits no more once it is turned"):
        build_objective(config, first_of(open_sources(config.data)))


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3_vit", "swin", "resnet"])
def test_every_part_is_learned_at_its_depth_and_tokens_are_not_decayed(family):
    encoder = make_encoder(family, image_size=28)
    ratios = layer_ratios(encoder, 0.5)
    depth = len(encoder.blocks())
    found = {name: ratios[id(p)] for name, p in encoder.named_parameters()}
    inside = {id(p) for block in encoder.blocks() for p in block.parameters()}
    for name, parameter in encoder.named_parameters():
        top = any(name.startswith(f"model.{norm}") for norm in ("layernorm", "norm"))
        assert (found[name] == 0.5 ** (depth + 1)) == (id(parameter) not in inside and not top), name
    for trained in trained_parameters({"encoder": encoder}, None):
        if trained.name.endswith(("tokens", "token", "position_embeddings", "bias_table", "lambda1")):
            assert not trained.decayed, trained.name
