"""Model FLOPs are what paper and pencil give, for every family of encoders, and counting them disturbs nothing."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from data_tools.dataset.open import open_dataset
from data_tools.schema import build_section
from pretrain.config.load import load_config
from pretrain.data import build_loader, first_of, open_sources
from pretrain.encoders import encoder_class
from pretrain.engine.base import World
from pretrain.metering.flops import step_flops
from pretrain.metering.peak import device_peak, peak_flops
from pretrain.objectives.base import Loss, Objective, stack
from pretrain.run.run import build_objective

B, D, M, L, T = 3, 32, 80, 2, 64  # samples, width, width of the feed-forward layer, layers, tokens


class Sum(Objective):
    """Nothing but the encoder."""

    def loss(self, phase, batch):
        return Loss(self.roles["encoder"](batch).sum())


GREY = {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}


def counted(name, settings, data="sample:digits"):
    dataset = open_dataset(data)
    encoder = encoder_class(name)(
        build_section(encoder_class(name).Config, {"name": name, **settings}, "encoder"), dataset
    )
    sample = next(iter(dataset.read(0, number) for number in [0]))
    return step_flops(Sum(None, encoder, dataset), stack([encoder.view(sample)] * B))


def transformer(tokens, matrices):
    """Forward and backward: 6 for each number in a layer's matrices and token, 12 T D for each token's attention."""
    return B * L * tokens * (6 * matrices + 12 * tokens * D)


def test_vit():
    settings = {**GREY, "image_size": 28, "patch_size": 7, "hidden_size": D, "intermediate_size": M,
                "num_hidden_layers": L, "num_attention_heads": 2}  # fmt: skip
    patches = 16
    embedding = 2 * 2 * B * patches * D * 7 * 7  # pixels need no gradient: twice, not three times
    assert counted("vit", settings) == transformer(patches + 1, 4 * D * D + 2 * D * M) + embedding


TEXT = {"max_length": T, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "settings", "matrices"),
    [
        ("bert", {**TEXT, "intermediate_size": M}, 4 * D * D + 2 * D * M),
        ("gpt2", {"max_length": T, "n_embd": D, "n_layer": L, "n_head": 2}, 4 * D * D + 2 * D * 4 * D),
        ("llama", {**TEXT, "intermediate_size": M}, 4 * D * D + 3 * D * M),
        ("llama", {**TEXT, "intermediate_size": M, "num_key_value_heads": 1}, 3 * D * D + 3 * D * M),
        ("modernbert", {**TEXT, "intermediate_size": M}, 4 * D * D + 3 * D * M),
    ],
)
def test_text(name, settings, matrices):
    assert counted(name, settings, "sample:sotu") == transformer(T, matrices)


def test_convnextv2():
    found = counted("convnextv2", {**GREY, "hidden_sizes": [8, 16], "depths": [1, 2], "image_size": 32,
                                   "patch_size": 4})  # fmt: skip
    stem = 2 * 2 * 8 * 8 * 8 * 4 * 4  # (8×8 places, 8 channels, 4×4 pixels), pixels without a gradient
    blocks = sum(n * 6 * side * side * (c * 7 * 7 + 2 * c * 4 * c) for n, side, c in ((1, 8, 8), (2, 4, 16)))
    between = 6 * 4 * 4 * 16 * 8 * 2 * 2
    assert found == B * (stem + blocks + between)


def test_mlp():
    found = counted("mlp", {"image_size": 28, "num_channels": 1, "hidden_sizes": [D, M]})
    assert found == B * (4 * 28 * 28 * D + 6 * D * M)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mae_digits", "mlm_sotu", "clm_sotu", "gan_digits", "attribute_digits",
                                    "attribute_sotu", "autoencoder_digits", "autoencoder_mlp_digits"])  # fmt: skip
def test_every_recipe_is_counted_and_left_as_it_was(recipe, caplog):
    config, _ = load_config(recipe, ["train.global_batch_size=4"])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    batch = next(iter(build_loader(config, objective, sources, World()))).micro_batches[0]
    before = {n: copy.deepcopy(r.state_dict()) for n, r in objective.roles.items()}
    frozen = [p.requires_grad for r in objective.roles.values() for p in r.parameters()]
    random = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        flops = step_flops(objective, batch)
    assert not caplog.records
    weights = sum(p.numel() for p in objective.roles["encoder"].parameters() if p.ndim >= 2)
    assert flops > 4 * weights
    assert torch.equal(torch.get_rng_state(), random)
    for name, role in objective.roles.items():
        torch.testing.assert_close(role.state_dict(), before[name], rtol=0, atol=0)
        assert all(p.grad is None for p in role.parameters())
    assert frozen == [p.requires_grad for r in objective.roles.values() for p in r.parameters()]
    without_memory = build_objective(config, first_of(sources), deferred=True)
    assert step_flops(without_memory, batch) == flops


def test_a_phase_that_runs_seldom_counts_seldom():
    counts = {}
    for every in (2, 4, 8):
        config, _ = load_config("gan_digits", ["train.global_batch_size=4", f"objective.r1_every={every}"])
        sources = open_sources(config.data)
        objective = build_objective(config, first_of(sources))
        batch = next(iter(build_loader(config, objective, sources, World()))).micro_batches[0]
        counts[every] = step_flops(objective, batch)
    assert counts[2] - counts[4] == pytest.approx(2 * (counts[4] - counts[8]))
    assert counts[4] > counts[8]


def test_an_objective_that_reads_values_is_warned_of_and_trains_without_the_number(caplog):
    class Reads(Sum):
        def loss(self, phase, batch):
            loss = super().loss(phase, batch)
            return Loss(loss.sum * float(loss.sum))

    dataset = open_dataset("sample:digits")
    encoder = encoder_class("mlp")(
        build_section(
            encoder_class("mlp").Config, {"name": "mlp", "image_size": 28, "num_channels": 1}, "encoder"
        ),
        dataset,
    )
    with caplog.at_level(logging.WARNING):
        assert step_flops(Reads(None, encoder, dataset), stack([encoder.view(dataset.read(0, 0))])) is None
    assert "model FLOPs could not be counted" in caplog.text


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "fp16", 835.5),
        ("NVIDIA H200", "fp8", 1978.9),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla T4", "fp32", 8.1),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ],
)
def test_peaks_are_found_by_the_devices_name(name, precision, tera):
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)


def test_what_the_table_lacks_is_none_and_a_setting_comes_first():
    assert peak_flops("Tesla V100-SXM2-32GB", "bf16") is None
    assert peak_flops("NVIDIA A1000", "bf16") is None
    assert device_peak(torch.device("cpu"), "fp32", None) is None
    assert device_peak(torch.device("cpu"), "fp32", 2.5) == 2.5e12
