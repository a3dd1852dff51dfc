"""SimMIM is the published one: `transformers`' loss and gradients for a ViT, the formula in float64 for a CNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import SwinConfig, SwinForMaskedImageModeling, ViTConfig, ViTForMaskedImageModeling

from data_tools.errors import UserError
from pretrain.encoders.image.convnextv2 import ConvNextV2Encoder, ConvNextV2EncoderConfig
from pretrain.encoders.image.mlp import MLPEncoder, MLPEncoderConfig
from pretrain.encoders.image.swin import SwinEncoder, SwinEncoderConfig
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.objectives.simmim import SimMIM, SimMIMConfig
from tests.text_models import make_encoder, make_tokenizer

SIZES = {"image_size": 24, "patch_size": 4, "num_channels": 3, "hidden_size": 32, "num_hidden_layers": 2}
CONVNEXT = {"image_size": 24, "patch_size": 4, "hidden_sizes": (8, 16), "depths": (1, 1)}


def simmim(encoder, **settings):
    torch.manual_seed(0)
    objective = SimMIM(SimMIMConfig(**{"mask_patch_size": 8, **settings}), encoder, dataset=None)
    with torch.no_grad():  # biases and norms start at zero and one, where mistakes hide
        for role in objective.roles.values():
            for parameter in role.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return objective


def vit():
    torch.manual_seed(0)
    return ViTEncoder(ViTEncoderConfig(**SIZES, num_attention_heads=4, positions="learned"))


class Blind(ViTEncoder):
    """An encoder of somebody's that says nothing of hidden places."""

    gives = frozenset({"images"})


def swin():
    torch.manual_seed(0)
    return SwinEncoder(
        SwinEncoderConfig(
            image_size=24, patch_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 4), window_size=3
        )
    )


def their_vit():
    return ViTForMaskedImageModeling(
        ViTConfig(
            **SIZES,
            num_attention_heads=4,
            intermediate_size=128,
            encoder_stride=4,
            layer_norm_eps=1e-6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def their_swin():
    return SwinForMaskedImageModeling(
        SwinConfig(
            image_size=24,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=3,
            encoder_stride=8,
            drop_path_rate=0.0,
        )
    )


def batch_of(objective, samples=3):
    image = np.random.default_rng(1).integers(0, 256, (samples, 24, 24, 3), dtype=np.uint8)
    given = [{"__key__": str(i), "image": x} for i, x in enumerate(image)]
    examples = [objective.example(s, np.random.default_rng(i)) for i, s in enumerate(given)]
    return objective.collate(examples)


@pytest.mark.parametrize(("base", "ours", "theirs"), [("vit", vit, their_vit), ("swin", swin, their_swin)])
def test_loss_and_every_gradient_equal_those_of_transformers(base, ours, theirs):
    objective, model = simmim(ours()), theirs()
    batch, phase = batch_of(objective), objective.phases()[0]
    own = {f"{base}.{name}": p for name, p in objective.encoder.model.named_parameters()}
    own[f"{base}.embeddings.mask_token"] = objective.roles["mask_token"].mask_token
    own |= {f"decoder.0.{name}": p for name, p in objective.roles["head"].project.named_parameters()}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.load_state_dict({name: p.detach().view(shapes[name]) for name, p in own.items()}, strict=True)

    loss = objective.loss(phase, batch).sum / objective.count(phase, batch)
    masked = batch["mask"].repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)  # of patches
    pixels = objective.encoder.pixels(batch["image"])
    reference = model(pixel_values=pixels, bool_masked_pos=masked)
    torch.testing.assert_close(loss, reference.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(objective.predict(batch), reference.reconstruction, rtol=0, atol=1e-5)
    loss.backward()
    reference.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == own.keys()
    for name, parameter in own.items():
        torch.testing.assert_close(
            parameter.grad.view(shapes[name]), gradients[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )  # fmt: skip


@pytest.mark.parametrize("hidden", ["token", "mean"])
def test_a_cnn_sees_one_colour_in_hidden_blocks_and_is_scored_there_alone(hidden):
    objective = simmim(ConvNextV2Encoder(ConvNextV2EncoderConfig(**CONVNEXT)), hidden=hidden)
    batch, phase = batch_of(objective), objective.phases()[0]
    encoder, colour = objective.encoder, np.zeros(3)
    if hidden == "token":
        colour = objective.roles["mask_token"].mask_token.detach().double().numpy()
    pixels = encoder.pixels(batch["image"]).double().numpy()
    mask = batch["mask"].numpy().repeat(8, 1).repeat(8, 2)[:, None]  # (B, 1, H, W)
    seen = torch.from_numpy(np.where(mask, colour[:, None, None], pixels)).float()
    as_image = (seen * encoder.image_std + encoder.image_mean).contiguous()
    with torch.no_grad():
        guess = objective.roles["head"](encoder({"image": as_image})).double().numpy()
        loss = objective.loss(phase, batch).sum.item() / objective.count(phase, batch)
    by_hand = sum(np.abs(guess - pixels)[i, :, mask[i, 0]].sum() for i in range(3)) / (3 * mask.sum())
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_the_head_puts_each_tokens_pixels_where_the_token_is():
    objective = simmim(vit())
    head = objective.roles["head"]
    tokens = torch.zeros(1, 37, 32)
    tokens[0, 1 + 6 * 2 + 5] = 1.0  # the patch in row 2, column 5
    with torch.no_grad():
        drawn = head(tokens) - head(torch.zeros(1, 37, 32))
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[8:12, 20:24] = True
    assert drawn[0].abs().sum(0)[inside].min() > 0
    assert drawn[0].abs().sum(0)[~inside].max() == 0


def test_six_tenths_of_the_blocks_are_hidden_rounded_up_and_others_in_each_sample():
    objective = simmim(MLPEncoder(MLPEncoderConfig(image_size=24, num_channels=3, hidden_sizes=(8,))))
    batch = batch_of(objective, samples=8)
    assert batch["mask"].shape == (8, 3, 3)
    assert (batch["mask"].sum((1, 2)) == 6).all()  # ⌈.6 · 9⌉
    assert len({tuple(mask.flatten().tolist()) for mask in batch["mask"]}) > 4
    assert objective.count(objective.phases()[0], batch) == 8 * 6 * 64 * 3
    assert objective.loss(objective.phases()[0], batch).sum.isfinite()


def test_settings_that_hide_nothing_or_everything_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"mask_patch_size=16: blocks do not fill 24×24 pixels; the nearest.* 12"
    ):
        simmim(vit(), mask_patch_size=16)
    with pytest.raises(
        UserError, match=r"mask_patch_size=6: cuts patches.*multiple of encoder\.patch_size=4"
    ):
        simmim(vit(), mask_patch_size=6)
    with pytest.raises(UserError, match=r"mask_ratio=0\.9: must .* leave some of 4 blocks"):
        simmim(vit(), mask_patch_size=12, mask_ratio=0.9)
    with pytest.raises(UserError, match=r"no whole squares for 3×3 tokens"):
        config = ConvNextV2EncoderConfig(image_size=25, patch_size=4, hidden_sizes=(8, 16), depths=(1, 1))
        simmim(ConvNextV2Encoder(config), mask_patch_size=5)
    with pytest.raises(UserError, match=r"SimMIM paints images; .* or objective\.name=mlm"):
        simmim(make_encoder("bert", make_tokenizer(tmp_path)))
    with pytest.raises(UserError, match="does not say how it hides one"):
        simmim(Blind(ViTEncoderConfig(**SIZES, num_attention_heads=4)))
