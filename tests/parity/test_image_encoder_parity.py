"""Encoders of images equal those of `transformers`: tokens, pooling, hidden places, batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import ResNetModel, SwinModel

from data_tools.schema import build_section
from pretrain.encoders import ENCODERS

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 7,
    "image_size": 28,
}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3}
FAMILIES = {
    "vit": SMALL,
    "dinov2": SMALL,
    "dinov2_with_registers": SMALL,
    "dinov3_vit": SMALL,
    "swin": SWIN,
    "swinv2": SWIN,
    "resnet": {"image_size": 28, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
}
PATCHES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def make_encoder(family, **more):
    torch.manual_seed(0)
    cls = ENCODERS[family]
    encoder = cls(build_section(cls.Config, {"name": family, **FAMILIES[family], **more}, "encoder"))
    with torch.no_grad():  # biases, norms and tokens start at zero and one, where mistakes hide
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    # Swin V2 norms what leaves its blocks, however small: in fp32 two orders of one sum are 2e-5 apart.
    return encoder.eval().to(torch.float64 if family == "swinv2" else torch.float32)


def draw_images(encoder, number, sizes):
    return torch.rand(number, 3, *sizes, dtype=next(encoder.parameters()).dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, (2, 1), (3, 2)], ids=["its own size", "another", "a third"])
@torch.no_grad()
def test_tokens_and_pooled_features_are_those_of_transformers(family, size):
    encoder = make_encoder(family)
    if family == "vit" and size is None:
        size = (1, 1)
    rows, columns = (side * times for side, times in zip(encoder.sizes, size or (1, 1), strict=True))
    image = draw_images(encoder, 2, (rows, columns))
    own = {"interpolate_pos_encoding": True} if family == "vit" else {}
    theirs = encoder.model(encoder.pixels(image), **own)
    expected = theirs.last_hidden_state
    tokens = encoder({"image": image})
    torch.testing.assert_close(
        tokens, expected.flatten(2).mT if expected.ndim == 4 else expected, **TOLERANCE
    )
    if theirs.pooler_output is not None:  # what the family's own usage takes
        torch.testing.assert_close(encoder.pool(tokens, {}), theirs.pooler_output.flatten(1), **TOLERANCE)


@torch.no_grad()
def test_swin_pools_as_its_own_pooler_does():
    encoder = make_encoder("swin")
    model = SwinModel(encoder.model.config, add_pooling_layer=True).eval()
    model.load_state_dict(encoder.model.state_dict())
    image = torch.rand(2, 3, 32, 32)
    pooled = encoder.pool(encoder({"image": image}), {})
    torch.testing.assert_close(pooled, model(encoder.pixels(image)).pooler_output, **TOLERANCE)


@torch.no_grad()
def test_swin_sees_a_large_image_alike_whatever_it_saw_before():
    encoder = make_encoder("swin", window_size=4)
    large = torch.rand(1, 3, 64, 64)
    before = encoder({"image": large})
    encoder({"image": torch.rand(1, 3, 32, 32)})  # its last feature map is one window: no shift
    torch.testing.assert_close(encoder({"image": large}), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", PATCHES)
@torch.no_grad()
def test_dropped_patches_leave_the_others_where_they_are(family):
    encoder = make_encoder(family)
    image = torch.rand(3, 3, 28, 42)
    order = torch.stack([torch.randperm(24) for _ in range(3)])
    whole, shuffled = encoder({"image": image}), encoder({"image": image}, ids_keep=order)
    index = order.unsqueeze(-1).expand(-1, -1, 16)
    lead = encoder.lead
    torch.testing.assert_close(shuffled[:, lead:], whole[:, lead:].gather(1, index), **TOLERANCE)
    torch.testing.assert_close(shuffled[:, :lead], whole[:, :lead], **TOLERANCE)
    assert encoder({"image": image}, ids_keep=order[:, :6]).shape == (3, lead + 6, 16)


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit", "swin", "swinv2"])
@torch.no_grad()
def test_hidden_places_have_the_token_where_transformers_puts_it(family):
    encoder = make_encoder(family)
    model = encoder.model
    if "swin" in family:
        model = type(model)(model.config, use_mask_token=True).eval().to(encoder.image_mean.dtype)
        missing, vain = model.load_state_dict(encoder.model.state_dict(), strict=False)
        assert missing == ["embeddings.mask_token"] and not vain
    nn.init.normal_(model.embeddings.mask_token)
    image = draw_images(encoder, 2, encoder.sizes)
    rows, columns = (side // encoder.config.patch_size for side in encoder.sizes)
    mask = torch.rand(2, rows, columns) < 0.5
    expected = model(encoder.pixels(image), bool_masked_pos=mask.flatten(1)).last_hidden_state
    token = model.embeddings.mask_token.flatten()
    torch.testing.assert_close(encoder({"image": image}, mask=mask, mask_token=token), expected, **TOLERANCE)
    colour = encoder({"image": image}, mask=mask)
    grey = encoder.pixels(image).masked_fill(
        mask.repeat_interleave(encoder.config.patch_size, 1).repeat_interleave(encoder.config.patch_size, 2)[
            :, None
        ],
        0,
    )
    torch.testing.assert_close(colour, model(grey).last_hidden_state, **TOLERANCE)


def test_batch_norm_in_training_is_torchs_own_where_there_is_one_rank():
    encoder = make_encoder("resnet")
    model = ResNetModel(encoder.model.config)
    model.load_state_dict(encoder.model.state_dict())
    image = torch.rand(4, 3, 28, 28)
    weight = torch.randn(4, 16, 4, 4)
    encoder.train(), model.train()
    (encoder({"image": image}).mT.unflatten(2, (4, 4)) * weight).sum().backward()
    (model(encoder.pixels(image)).last_hidden_state * weight).sum().backward()
    for (name, ours), theirs in zip(encoder.model.named_parameters(), model.parameters(), strict=True):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * max(scale, 1), msg=name)
    for (name, ours), theirs in zip(encoder.model.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale():
    encoder = make_encoder("resnet", norm="frozen")
    before = copy.deepcopy(dict(encoder.model.named_buffers()))
    image = torch.rand(4, 3, 28, 28)
    expected = encoder({"image": image})
    tokens = encoder.train()({"image": image})
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    tokens.sum().backward()
    assert encoder.model.embedder.embedder.normalization.weight.grad.abs().sum() > 0
    torch.testing.assert_close(dict(encoder.model.named_buffers()), before, rtol=0, atol=0)


def test_statistics_stay_where_a_batch_is_not_finite_and_move_once_where_activations_are_recomputed():
    from pretrain.engine.blocks import recompute_activations

    image = torch.rand(4, 3, 28, 28)
    plain, recomputing = make_encoder("resnet").train(), make_encoder("resnet").train()
    recompute_activations(recomputing, "full")
    for encoder in (plain, recomputing):
        encoder({"image": image}).square().sum().backward()
    torch.testing.assert_close(
        dict(recomputing.model.named_buffers()), dict(plain.model.named_buffers()), rtol=0, atol=0
    )
    before = copy.deepcopy(dict(plain.model.named_buffers()))
    plain({"image": torch.full_like(image, torch.nan)})
    torch.testing.assert_close(dict(plain.model.named_buffers()), before, rtol=0, atol=0)
