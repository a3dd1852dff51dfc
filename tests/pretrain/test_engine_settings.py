"""What an engine cannot do, or a ds_config.json contradicts, is refused in one line before anything starts."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from data_tools.errors import UserError
from pretrain.config.sections import TrainConfig
from pretrain.engine.base import World
from pretrain.engine.blocks import (
    check_attention,
    compile_role,
    find_blocks,
    recompute_activations,
    set_attention,
)
from pretrain.engine.config import DeepSpeedConfig, FSDPConfig
from pretrain.engine.deepspeed import DeepSpeedEngine, refuse_other_than_adam
from pretrain.engine.ds_config import build_ds_config
from pretrain.engine.fsdp import FSDPEngine
from pretrain.engine.precision import Scaler, check_precision

TRAIN = TrainConfig(steps=1, global_batch_size=32, micro_batch_size=4, clip_grad_norm=1.0, precision="bf16")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU refuses")


def ds_config(tmp_path, values):
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(values))
    return build_ds_config(TRAIN, DeepSpeedConfig(config=str(path)), world_size=2)


def test_a_users_ds_config_is_kept_and_completed(tmp_path):
    values = {
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 1, "overlap_comm": False},
        "wall_clock_breakdown": True,
    }
    found = ds_config(tmp_path, values)
    assert found["train_batch_size"] == 32
    assert found["gradient_accumulation_steps"] == 4
    assert found["bf16"] == {"enabled": True}
    assert found["zero_optimization"] == {"stage": 1, "overlap_comm": False}
    assert found["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 64}, "train_batch_size=64 contradicts the recipe, which means 32"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=1 contradicts .* 4"),
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5 contradicts"),
        ({"bf16": {"enabled": False}}, "bf16.enabled=False contradicts"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=True contradicts"),
        ({"optimizer": {"type": "Adam"}}, "has the section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "has the section 'scheduler'"),
        ([1], "an object of sections"),
    ],
)  # fmt: skip
def test_a_contradicting_ds_config_is_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        ds_config(tmp_path, values)


def test_a_stage_that_the_file_contradicts_is_refused(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    with pytest.raises(UserError, match=r"zero_optimization.stage=1 contradicts .* 3"):
        build_ds_config(TRAIN, DeepSpeedConfig(stage=3, config=str(path)), 2)
    with pytest.raises(UserError, match="cannot be read"):
        build_ds_config(TRAIN, DeepSpeedConfig(config=str(tmp_path / "none.json")), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DeepSpeedConfig(stage=2, offload_param="cpu"), "needs deepspeed.stage=3, this is 2"),
        (DeepSpeedConfig(stage=0, offload_optimizer="cpu"), "needs deepspeed.stage 1, 2 or 3"),
        (DeepSpeedConfig(stage=3, offload_optimizer="nvme"), "give deepspeed.nvme_path"),
    ],
)
def test_offloading_that_a_stage_cannot_do_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build_ds_config(TRAIN, settings, 2)


def test_zero_3_refuses_an_average_of_weights_that_are_nowhere_whole():
    with pytest.raises(UserError, match=r"train.ema_decay=0.9: ZeRO-3 .* deepspeed.stage ≤ 2"):
        build_ds_config(replace(TRAIN, ema_decay=0.9), DeepSpeedConfig(stage=3), 2)


def test_without_deepspeed_its_engine_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install .*masquerade\[deepspeed\]"):
        DeepSpeedEngine(TRAIN)


def test_zero_refuses_optimizers_that_look_at_matrices():
    with pytest.raises(UserError, match="adagrad"):
        refuse_other_than_adam(torch.optim.Adagrad([nn.Parameter(torch.ones(2, 2))]))


def test_replicas_must_divide_the_ranks(monkeypatch):
    monkeypatch.setattr(World, "from_environment", classmethod(lambda cls: World(0, 4)))
    with pytest.raises(UserError, match=r"fsdp\.hsdp=3: 4 ranks"):
        FSDPEngine(TRAIN, FSDPConfig(hsdp=3))


@on_cpu
@pytest.mark.parametrize("precision", ["tf32", "fp8"])
def test_a_precision_of_gpus_is_refused_without_one(precision):
    with pytest.raises(UserError, match=f"train.precision={precision}: needs an NVIDIA GPU"):
        check_precision(precision)


@on_cpu
def test_an_attention_back_end_of_gpus_is_refused_without_one():
    with pytest.raises(UserError, match=r"train\.attention=flex: needs an NVIDIA GPU"):
        check_attention("flex", "bf16")
    check_attention("varlen", "fp32")


def test_varlen_on_a_gpu_is_refused_where_its_kernel_does_not_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"train\.attention=varlen: on a GPU computes in 16 bits"):
        check_attention("varlen", "fp32")
    with pytest.raises(UserError, match=r"train\.attention=varlen: its kernel needs an Ampere GPU"):
        check_attention("varlen", "fp16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    check_attention("varlen", "bf16")


def test_the_loss_scale_halves_after_an_overflow_and_doubles_after_a_healthy_while():
    scaler = Scaler(True, torch.device("cpu"), interval=2)
    start = float(scaler.scale)
    scaler.update(torch.ones(()))
    assert float(scaler.scale) == start / 2
    scaler.update(torch.zeros(()))
    scaler.update(torch.zeros(()))
    assert float(scaler.scale) == start
    other = Scaler(True, torch.device("cpu"))
    other.load_state_dict({"scale": torch.tensor(8.0), "healthy": torch.tensor(1, dtype=torch.int32)})
    assert other.state_dict()["scale"] == 8


def make_role():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=32)  # fmt: skip
    return ViTModel(sizes, add_pooling_layer=False)


def gradients(role):
    role(torch.linspace(0, 1, 192).view(1, 3, 8, 8)).last_hidden_state.square().sum().backward()
    return {name: p.grad for name, p in role.named_parameters()}


def test_blocks_are_the_items_of_module_lists():
    role = make_role()
    assert find_blocks(role) == list(role.layers)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_activations_give_the_same_gradients(mode):
    plain, recomputed = make_role(), make_role()
    recompute_activations(recomputed, mode)
    calls = []
    recomputed.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(recomputed)
    assert len(calls) == 2  # forward, and again in backward
    for name, gradient in gradients(plain).items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["block", "whole"])
def test_compiled_roles_give_the_same_gradients(mode, monkeypatch):
    if mode == "block":  # traced only: `test_attention` has code written for blocks
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = make_role(), make_role()
    recompute_activations(compiled, "full")
    compile_role(compiled, mode)
    names = set(plain.state_dict())
    assert set(compiled.state_dict()) == names
    found = gradients(compiled)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_an_attention_back_end_reaches_every_layer():
    plain, eager = make_role(), make_role()
    set_attention(eager, "eager")
    assert {layer.attention.config._attn_implementation for layer in eager.layers} == {"eager"}
    pixels = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    torch.testing.assert_close(eager(pixels).last_hidden_state, plain(pixels).last_hidden_state)


def test_the_lock_of_a_killed_build_is_removed_and_a_fresh_one_kept(tmp_path, monkeypatch):
    from pretrain.engine.deepspeed import remove_stale_build_locks

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, fresh = (tmp_path / "cpu" / f"deepspeed_{name}" / "lock" for name in ("a", "b"))
    for lock in (old, fresh):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(old, (0, 0))
    remove_stale_build_locks()
    assert (old.exists(), fresh.exists()) == (False, True)
