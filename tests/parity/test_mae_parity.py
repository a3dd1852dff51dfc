"""MAE is the published one: the same loss and gradients as `transformers`' own, at the same weights and masks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining

from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.objectives.mae import MAE, MAEConfig

SIZES = {"image_size": 24, "patch_size": 4, "num_channels": 3, "hidden_size": 32, "num_hidden_layers": 2}


def ours(normalize_target=True):
    torch.manual_seed(0)
    encoder = ViTEncoder(ViTEncoderConfig(**SIZES, num_attention_heads=4))
    config = MAEConfig(
        normalize_target=normalize_target,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
    )
    objective = MAE(config, encoder, dataset=None)
    with torch.no_grad():  # biases and norms start at zero and one, where mistakes hide
        for role in objective.roles.values():
            for parameter in role.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return objective


def theirs(objective):
    """`ViTMAEForPreTraining` with the weights of ours."""
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            **SIZES,
            num_attention_heads=4,
            intermediate_size=128,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            mask_ratio=objective.config.mask_ratio,
            norm_pix_loss=objective.config.normalize_target,
            layer_norm_eps=1e-6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    state = {their: parameter.detach() for their, parameter in pairs(objective).items()}
    positions = objective.roles["decoder"].positions
    state["decoder.decoder_pos_embed"] = torch.cat([torch.zeros_like(positions[:1]), positions])[None]
    model.load_state_dict(state, strict=True)
    return model


def pairs(objective):
    """Their name of each of our parameters."""
    found = {f"vit.{name}": p for name, p in objective.encoder.model.named_parameters()}
    names = {
        "embed": "decoder_embed",
        "layers": "decoder_layers",
        "norm": "decoder_norm",
        "head": "decoder_pred",
    }
    for name, parameter in objective.roles["decoder"].named_parameters():
        first, dot, rest = name.partition(".")
        found[f"decoder.{names.get(first, first)}{dot}{rest}"] = parameter
    return found


def batch_of(objective):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 3, 24, 24), generator=generator, dtype=torch.uint8)
    order = torch.stack([torch.randperm(36, generator=generator) for _ in range(3)])
    return {"image": image, "order": order}


@pytest.mark.parametrize("normalize_target", [True, False])
def test_mae_loss_and_every_gradient_equal_those_of_transformers(normalize_target):
    objective = ours(normalize_target)
    model, batch, phase = theirs(objective), batch_of(objective), objective.phases()[0]
    loss = objective.loss(phase, batch).sum / objective.count(phase, batch)
    # They see the patches with the least noise, in its order.
    noise = batch["order"].argsort(1).float()
    reference = model(pixel_values=objective.encoder.pixels(batch["image"]), noise=noise).loss
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    loss.backward()
    reference.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) == len([p for p in pairs(objective).values() if p.requires_grad])
    for name, parameter in pairs(objective).items():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.no_grad()
def test_vit_encoder_of_whole_images_equals_the_saved_model(tmp_path):
    objective = ours()
    objective.encoder.save(tmp_path)
    batch = batch_of(objective)
    model = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    reference = model(pixel_values=objective.encoder.pixels(batch["image"])).last_hidden_state
    torch.testing.assert_close(objective.encoder(batch), reference, rtol=0, atol=1e-5)


@torch.no_grad()
def test_seeing_all_patches_in_any_order_equals_seeing_the_whole_image():
    objective = ours()
    batch = batch_of(objective)
    whole = objective.encoder(batch)
    shuffled = objective.encoder(batch, ids_keep=batch["order"])
    index = batch["order"].unsqueeze(-1).expand(-1, -1, 32)
    torch.testing.assert_close(shuffled[:, 1:], whole[:, 1:].gather(1, index), rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled[:, 0], whole[:, 0], rtol=0, atol=1e-5)
