"""The configuration: precedence, and errors that name the nearest right thing."""

from __future__ import annotations

import pytest
import yaml

from data_tools.errors import UserError
from pretrain.config.check import check_world_size
from pretrain.config.load import RECIPES, build_config, load_config
from pretrain.config.show import format_config, to_dict
from pretrain.run.folder import refuse_other_config


def test_command_line_beats_recipe_beats_default():
    config, origin = load_config("mae_digits", ["train.steps=7", "train.clip_grad_norm=1"])
    assert config.train.steps == 7
    assert config.train.clip_grad_norm == 1.0
    assert config.encoder.image_size == 28  # the recipe's
    assert config.data.workers == 1  # the default
    assert origin["train.steps"] == "command line"
    assert origin["encoder.image_size"] == "mae_digits.yaml"
    assert "data.workers" not in origin


def test_exponents_without_a_dot_are_numbers():
    config, _ = load_config("mae_digits", ["optimizer.lr=1e-3"])
    assert config.optimizer.lr == 0.001


def test_printed_config_is_yaml_that_builds_the_same_config():
    config, origin = load_config("mae_digits", ["train.steps=7"])
    text = format_config(config, origin)
    assert "steps: 7  # command line" in text
    assert build_config(yaml.safe_load(text)) == config
    assert build_config(to_dict(config)) == config


def test_choosing_another_objective_drops_the_settings_of_the_first():
    with pytest.raises(UserError, match=r"objective\.name='nothing'"):
        load_config("mae_digits", ["objective={name: nothing}"])


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_valid(recipe):
    config, _ = load_config(recipe, [])
    assert config.name == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objctive.x=1", "objctive: unknown key; did you mean 'objective'"),
        ("objective.mask_ration=0.5", "objective.mask_ration: unknown key; did you mean 'mask_ratio'"),
        ("train.step=5", "train.step: unknown key; did you mean 'steps'"),
        ("train.steps=many", "train.steps='many': must be a valid integer"),
        ("train.steps=0", "train.steps=0: must be greater than 0"),
        ("train.epochs=1", "give exactly one"),
        ("train=5", "train=5: is a section"),
        ("train.precision=fp7", "train.precision='fp7': must be"),
        ("encoder.name=vitt", "encoder.name='vitt': unknown; did you mean 'vit'"),
        ("encoder.name=no_such_module:X", "cannot be imported"),
        ("schedule={warmup_ratio: null, warmup_steps: 100000}", "longer than the run"),
        ("schedule.warmup_steps=10", "give one of them"),
        (
            "optimizer_overrides={main: {lrr: 1}}",
            "optimizer_overrides.main.lrr: unknown key; did you mean 'lr'",
        ),
        ("nonsense", "written key=value"),
        ("train.steps=[1", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(override, message):
    with pytest.raises(UserError) as error:
        load_config("mae_digits", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mae_digits'"):
        load_config("mae_digit", [])


def test_a_recipe_never_constructs_objects(tmp_path):
    target = tmp_path / "executed"
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.system ['touch {target}']\n")
    with pytest.raises(UserError, match="not a YAML recipe"):
        load_config(str(recipe), [])
    assert not target.exists()


def test_a_batch_that_ranks_cannot_share_is_refused_with_one_that_they_can():
    config, _ = load_config("mae_digits", ["train.global_batch_size=256"])
    check_world_size(config, 4)
    with pytest.raises(UserError, match="3 ranks cannot share it equally; 255 would do"):
        check_world_size(config, 3)
    config, _ = load_config("mae_digits", ["train.global_batch_size=256", "train.micro_batch_size=48"])
    with pytest.raises(UserError, match=r"does not divide a rank's share of 128 samples.*32 would do"):
        check_world_size(config, 2)


def test_a_run_of_before_a_setting_was_made_goes_on_with_its_default(tmp_path):
    config, _ = load_config("mae_digits", [f"run_dir={tmp_path}"])
    before = to_dict(config)
    del before["optimizer"]["rules"], before["train"]["ema_decay"]
    refuse_other_config("here", before, to_dict(config), "")
    config, _ = load_config("mae_digits", [f"run_dir={tmp_path}", "train.ema_decay=0.9"])
    with pytest.raises(UserError, match=r"holds a run with train.ema_decay=None, not 0.9"):
        refuse_other_config("here", before, to_dict(config), "")
