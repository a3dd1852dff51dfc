"""The learning rate by the batch-size rule: one way to write `optimizer.lr`, which all else goes by."""

from __future__ import annotations

import pytest
import yaml

from data_tools.errors import UserError
from finetune.config import load_config as load_job
from pretrain.__main__ import main
from pretrain.config.load import build_config, load_config
from pretrain.config.show import format_config, to_dict
from pretrain.run.changes import parse_changes, settings_at
from pretrain.run.folder import differences, load_run_config
from tests.processes import QUIET, losses
from tests.tiny_run import SMALL

GAN_OVERRIDES = "optimizer_overrides={discriminator: {lr_per_256: 1e-4}}"


def rate(recipe, *overrides):
    return load_config(recipe, list(overrides))[0].optimizer.lr


def test_the_rate_is_proportional_to_the_global_batch_and_a_paper_recipe_keeps_its_own():
    assert rate("mae_images") == 6e-4
    assert rate("mae_images", "train.global_batch_size=4096") == 24e-4
    assert rate("mae_digits", "optimizer.lr_per_256=1e-3", "train.global_batch_size=64") == 1e-3 / 4
    assert rate("mae_digits", "optimizer={lr_per_256: 1e-3}", "train.global_batch_size=64") == 1e-3 / 4


def test_the_batch_after_a_growing_one_counts():
    warmup = "train.batch_size_warmup=[[64, 10]]"
    assert rate("mae_images", warmup, "train.global_batch_size=512") == 3e-4


def test_what_it_comes_to_is_printed_with_where_it_comes_from():
    lines = format_config(*load_config("mae_images", ["optimizer.lr_per_256=3e-4"])).splitlines()
    assert "  lr: 0.0012  # lr_per_256 × train.global_batch_size / 256" in lines
    assert "  lr_per_256: 0.0003  # command line" in lines
    lines = format_config(*load_config("mae_images", ["optimizer.lr=1e-3"])).splitlines()
    assert "  lr: 0.001  # command line" in lines
    assert "  lr_per_256: null" in lines


def test_the_command_line_takes_the_place_of_the_recipes_whichever_it_is():
    assert rate("mae_images", "optimizer.lr=1e-3", "train.global_batch_size=64") == 1e-3
    assert rate("mae_digits", "optimizer.lr_per_256=1e-3", "train.global_batch_size=512") == 2e-3
    assert rate("mae_digits", "optimizer.lr_per_256=null") == rate("mae_digits")


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=1e-3", "optimizer.lr_per_256=1e-3"],
        ["optimizer={lr: 1e-3, lr_per_256: 1e-3}"],
    ],
)
def test_both_on_the_command_line_are_a_contradiction(overrides):
    with pytest.raises(
        UserError, match=r"optimizer\.lr=.* and optimizer\.lr_per_256=.* \(command line\): are two"
    ):
        load_config("mae_digits", overrides)


def test_both_in_a_recipe_are_a_contradiction_unless_they_agree_as_a_runs_own_do(tmp_path):
    config, _ = load_config("mae_images", [])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert rate(str(path)) == 6e-4
    assert rate(str(path), "train.global_batch_size=512") == 3e-4
    path.write_text(path.read_text().replace("lr: 0.0006", "lr: 0.0007"))
    with pytest.raises(
        UserError, match=r"optimizer\.lr=0\.0007 and optimizer\.lr_per_256=.* \(config\.yaml\)"
    ):
        load_config(str(path), [])


def test_each_of_several_optimizers_may_have_its_rule():
    config, origin = load_config("gan_digits", [GAN_OVERRIDES, "train.global_batch_size=64"])
    assert config.optimizer_for("discriminator").lr == 1e-4 / 4
    assert config.optimizer_for("generator").lr == config.optimizer.lr == 5e-4
    assert "lr: 2.5e-05  # lr_per_256 ×" in format_config(config, origin)
    assert build_config(to_dict(config)) == config
    both, _ = load_config("gan_digits", ["optimizer.lr_per_256=1e-3", "train.global_batch_size=64",
                                         "optimizer_overrides={discriminator: {lr: 0.5}}"])  # fmt: skip
    assert (both.optimizer_for("generator").lr, both.optimizer_for("discriminator").lr) == (1e-3 / 4, 0.5)
    with pytest.raises(UserError, match=r"optimizer_overrides\.discriminator\.lr=1.*lr_per_256"):
        load_config("gan_digits", ["optimizer_overrides={discriminator: {lr: 1, lr_per_256: 1}}"])


def test_fine_tuning_follows_the_rule_and_what_differs_takes_its_place():
    job = ["encoder=somewhere", "optimizer.lr_per_256=1e-3", "train.global_batch_size=64"]
    differing = ["scratch={optimizer: {lr: 0.5}}", "protocol.labels_per_class=[10]",
                 "by_labels={10: {train: {global_batch_size: 32}}}"]  # fmt: skip
    config, origin = load_job("digits", [*job, *differing])
    assert config.optimizer.lr == 1e-3 / 4
    assert "lr_per_256" in origin["optimizer.lr"]
    assert config.for_run("full", None).optimizer.lr == 1e-3 / 4
    assert config.for_run("full", 10).optimizer.lr == 1e-3 / 8
    assert config.for_run("scratch", 10).optimizer.lr == 0.5


def test_the_way_a_rate_is_written_makes_no_other_run_and_the_rate_does(tmp_path, capfd):
    quick = ["mae_digits", *SMALL, *QUIET, "train.global_batch_size=8", f"run_dir={tmp_path}"]
    assert main([*quick, "train.steps=2", "optimizer.lr=1e-3", "tracking.log_every=1"]) == 0
    longer = [*quick, "train.steps=3", "tracking.log_every=1"]
    assert main([*longer, "optimizer.lr_per_256=0.032", "--allow-changes", "train.steps"]) == 0
    assert sorted(losses(tmp_path)) == [1, 2, 3]
    assert main([*longer, "optimizer.lr_per_256=0.064"]) == 2
    error = capfd.readouterr().err
    assert (
        "holds a run with optimizer.lr=0.001, not 0.002; to change it on purpose, add --allow-changes"
        in error
    )
    assert main([*longer, "optimizer.lr_per_256=0.064", "--allow-changes", "optimizer.lr"]) == 0
    assert build_config(settings_at(tmp_path, 3, load_run_config(tmp_path))).optimizer.lr == 0.001
    with pytest.raises(UserError, match=r"did you mean 'optimizer\.lr'"):
        parse_changes("optimizer.lr_per_256")


def test_a_run_of_before_the_rule_is_the_recipes_own():
    config, _ = load_config("mae_images", [])
    before = to_dict(config)
    del before["optimizer"]["lr_per_256"]
    assert differences(before, to_dict(config)) == {}
    assert differences({**before, "optimizer": {**before["optimizer"], "lr": 1e-3}}, to_dict(config)) == {
        "optimizer.lr": [1e-3, 6e-4]
    }
