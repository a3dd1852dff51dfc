"""A value that no run could have is refused by the setting's name, in one line, before anything is built."""

from __future__ import annotations

import pytest

from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.config.load import load_config
from tests.processes import QUIET
from tests.tiny_run import SMALL


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("mae_digits", "optimizer.lr=nan", "optimizer.lr='nan': must be a finite number"),
        ("mae_digits", "optimizer.weight_decay=.inf", "optimizer.weight_decay=inf: must be a finite number"),
        ("mae_digits", "optimizer.weight_decay=-1", "must be greater than or equal to 0"),
        ("mae_digits", "data.path={'sample:digits': .nan}", "data.path.sample:digits=nan: must be a finite number"),
        ("mae_digits", "data.workers=-1", "data.workers=-1: must be greater than or equal to 0"),
        ("mae_digits", "data.max_damage_rate=2", "data.max_damage_rate=2: must be less than or equal to 1"),
        ("mae_digits", "schedule.min_lr_ratio=2", "schedule.min_lr_ratio=2: must be less than or equal to 1"),
        ("mae_digits", "encoder.hidden_size=0", "encoder.hidden_size=0: must be greater than 0"),
        ("mae_digits", "encoder.patch_size=0", "encoder.patch_size=0: must be greater than 0"),
        ("mae_digits", "encoder.image_size=-28", "encoder.image_size=-28: must be greater than 0"),
        ("mae_digits", "encoder.num_hidden_layers=-1", "encoder.num_hidden_layers=-1: must be greater than 0"),
        ("mae_digits", "encoder.intermediate_size=0", "encoder.intermediate_size=0: must be greater than 0"),
        ("mae_digits", "encoder.image_std=[0]", "encoder.image_std.0=0: must be greater than 0"),
        ("mae_digits", "objective.crop_scale=[1, 0.5]", "objective.crop_scale=[1, 0.5]: must rise"),
        ("mae_digits", "objective.crop_scale=[0, 0]", "objective.crop_scale.0=0: must be greater than 0"),
        ("mae_digits", "probe.train_samples=0", "probe.train_samples=0: must be greater than 0"),
        ("mlm_sotu", "encoder.max_length=0", "encoder.max_length=0: must be greater than 0"),
        ("mlm_sotu", "encoder.mlp_dropout=2", "encoder.mlp_dropout=2: must be less than or equal to 1"),
        ("mlm_sotu", "objective.replacement=[.9, .9, .9]", "objective.replacement"),
        ("gan_digits", "objective.r1_every=0", "objective.r1_every=0: must be greater than 0"),
        ("autoencoder_digits", "objective.latent_size=0", "objective.latent_size=0: must be greater than 0"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_name(recipe, override, message):
    from pretrain.data import first_of, open_sources
    from pretrain.run.run import build_objective

    with pytest.raises(UserError) as told:
        config, _ = load_config(recipe, [override])
        build_objective(config, first_of(open_sources(config.data)))
    assert message in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=[]", "data.path=[]: must be a valid string"),
        ("hooks=[1]", "hooks.0=1: must be"),
        ("hooks=my_file:MyHook", "hooks='my_file:MyHook': must be a list, e.g. [a, b]"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: missing"),
        ("optimizer.rules=[{mtch: a}]", "optimizer.rules.0.mtch: unknown key; did you mean 'match'?"),
    ],
)
def test_a_wrong_value_is_named_by_where_the_user_wrote_it(override, message):
    """Not by the name that pydantic has for one of its possible types."""
    with pytest.raises(UserError) as told:
        load_config("mae_digits", [override])
    assert str(told.value).startswith(message)


class NothingToRun:
    """A hook without `run`."""

    every = 1

    def __init__(self, context):
        pass


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.from_pretrained=3", "encoder.from_pretrained=3: give the path of a folder"),
        ("hooks=[foo]", "hooks='foo': is no class; write it as module:Class"),
        (
            f"hooks=['{__name__}:NothingToRun']",
            "NothingToRun has nothing to run; give it a method run(self, step)",
        ),
        ("data.validation=sample:sotu", "data.validation=sample:sotu: its samples have no image"),
    ],
)
def test_what_a_start_cannot_use_is_one_line(override, message, tmp_path, capfd):
    settings = [
        *SMALL,
        "train.steps=1",
        "train.global_batch_size=8",
        *QUIET,
    ]
    assert (
        main(["mae_digits", *settings, "tracking.wandb.mode=disabled", f"run_dir={tmp_path}", override]) == 2
    )
    assert message in capfd.readouterr().err
