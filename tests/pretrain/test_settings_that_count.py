"""No setting is dropped or ignored in silence: it replaces what it names, no more and no less, or is refused."""

from __future__ import annotations

import pytest
import yaml
from tiny_run import SMALL

from data_tools.errors import UserError
from finetune.config import load_config as load_finetuning
from pretrain.config.load import RECIPES, load_config
from pretrain.data import count_steps, first_of, open_sources
from pretrain.run.run import build_objective


def test_another_schedule_keeps_the_rest_of_the_recipes_section():
    assert load_config("bert_base", ["schedule.name=cosine"])[0].schedule.warmup_steps == 10_000
    assert load_config("gpt2_124m", ["schedule.name=linear"])[0].schedule.min_lr_ratio == 0.1
    assert load_config("gpt2_124m", ["schedule={name: linear}"])[0].schedule.min_lr_ratio == 0.1


def test_another_optimizer_keeps_the_rest_of_the_recipes_section():
    optimizer = load_config("gpt2_124m", ["optimizer.name=lamb"])[0].optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (6e-4, (0.9, 0.95), 0.1)


def test_another_encoder_begins_its_section_anew():
    config, origin = load_config("mae_digits", ["encoder.name=convnextv2", "objective.name=autoencoder"])
    assert config.encoder.image_size == 224  # convnextv2's own
    assert config.objective.latent_size == type(config.objective)().latent_size
    assert "encoder.image_size" not in origin  # the recipe's 28 is not said to stand there
    assert load_config("mae_digits", ["encoder.name=vit"])[0].encoder.image_size == 28


def test_a_mapping_takes_the_place_of_the_recipes(tmp_path):
    recipe = tmp_path / "mixed.yaml"
    values = yaml.safe_load((RECIPES / "attribute_digits.yaml").read_text())
    values["data"] = {"path": {"a": 0.5, "b": 0.5}}
    recipe.write_text(yaml.safe_dump(values))
    assert load_config(str(recipe), ["data.path={c: 1}"])[0].data.weights == {"c": 1.0}
    assert load_config(str(recipe), ["data={path: {c: 1}}"])[0].data.weights == {"c": 1.0}
    assert load_config(str(recipe), ["data.path.c=1"])[0].data.weights == {"a": 0.5, "b": 0.5, "c": 1.0}
    own = load_config(str(recipe), ["objective.attributes={turn: {derive: rotation}}"])[0]
    assert list(own.objective.attributes) == ["turn"]


def test_a_mapping_for_a_section_sets_what_it_names():
    config, _ = load_config("mae_digits", ["train={steps: 9}", "tracking={wandb: {mode: disabled}}"])
    assert (config.train.steps, config.train.global_batch_size) == (9, 128)
    assert (config.tracking.wandb.mode, config.tracking.log_every) == ("disabled", 50)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "attribute_digits",
            "objective.attributes={a: {derivve: rotation}}",
            "objective.attributes.a.derivve: unknown key; did you mean 'derive'",
        ),
        (
            "attribute_digits",
            "objective.attributes.field={fild: label}",
            "objective.attributes.field.fild: unknown key; did you mean 'field'",
        ),
        (
            "mae_digits",
            "optimizer.rules=[{match: a, lr_ration: 1}]",
            "optimizer.rules.0.lr_ration: unknown key; did you mean 'lr_ratio'",
        ),
        ("mae_digits", "tracking.wandb.mod=x", "tracking.wandb.mod: unknown key; did you mean 'mode'"),
        ("mae_digits", "train.steps=true", "train.steps=true: must be a number"),
        ("mae_digits", "optimizer.lr=true", "optimizer.lr=true: must be a number"),
        ("mae_digits", "seed=false", "seed=false: must be a number"),
        ("mae_digits", "optimizer.betas=[0.9, true]", "optimizer.betas.1=true: must be a number"),
        ("mae_digits", "data.path={a: true}", "data.path.a=true: must be a number"),
        ("mae_digits", "encoder.hidden_size=true", "encoder.hidden_size=true: must be a number"),
        ("mae_digits", "schedule={name: wsd, warmup_ratio: 0.5, decay_ratio: 0.6}", "they overlap"),
        ("mae_digits", "data.path=null", "data.path: name at least one data set"),
        ("mae_images", "probe.every=10", "probe.train: missing"),
        ("mlm_sotu", "probe={every: 10, train: x}", "probe.test: missing"),
    ],
)
def test_what_would_be_ignored_is_refused(recipe, override, message):
    with pytest.raises(UserError) as error:
        load_config(recipe, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_stay_as_easy_to_write_as_before():
    overrides = ["optimizer.lr=1e-3", "train.clip_grad_norm=1", "train.steps='7'", "train.deterministic=true"]
    config, _ = load_config("mae_digits", overrides)
    assert (config.optimizer.lr, config.train.clip_grad_norm, config.train.steps) == (1e-3, 1.0, 7)
    assert config.train.deterministic is True


def test_settings_of_an_optimizer_that_the_objective_does_not_have_are_refused():
    config, _ = load_config("gan_digits", ["optimizer_overrides.discriminatr.lr=1e-4"])
    with pytest.raises(UserError, match=r"optimizer_overrides.discriminatr: .* did you mean 'discriminator'"):
        build_objective(config, first_of(open_sources(config.data)))


def test_epochs_that_are_shorter_than_the_warm_up_are_refused():
    settings = ["train.steps=null", "train.epochs=1", "schedule={warmup_ratio: null, warmup_steps: 1000}"]
    config, _ = load_config("mae_digits", [*SMALL, *settings])
    with pytest.raises(UserError, match=r"warmup_steps=1000: longer than the run, which has 94 steps"):
        count_steps(config, open_sources(config.data))


def test_no_recipe_probes_digits_where_it_does_not_train_on_them():
    for path in RECIPES.glob("*.yaml"):
        config, _ = load_config(path.stem, [])
        if not str(config.data.path).startswith("sample:digits"):
            assert (config.probe.train, config.probe.test) == (None, None)


@pytest.mark.parametrize("recipe", ["image_classification", "text_classification"])
def test_fine_tuning_asks_for_its_data(recipe):
    with pytest.raises(UserError, match=r"data.train: missing"):
        load_finetuning(recipe, ["encoder=somewhere"])
