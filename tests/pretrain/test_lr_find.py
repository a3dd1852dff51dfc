"""The learning-rate range test: what it suggests, and that it is the same on any number of ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pretrain.__main__ import main
from pretrain.config.load import load_config
from pretrain.run.lr_find import RangeTest, fit_lines, has_diverged, lr_find
from tests.cases import GAN
from tests.processes import run
from tests.tiny_run import SMALL

QUICK = (*SMALL, "train.global_batch_size=16", "probe.every=0")
RATES = tuple(np.geomspace(1e-6, 10, 100).tolist())


def range_test(losses, diverged=False):
    return RangeTest(RATES[: len(losses)], tuple(losses), diverged, {"main": 1.0})


def falling(middle, noise=0.01):
    """Losses that fall from 2 to 1, most steeply at the rate `middle`."""
    x = np.log10(RATES) - np.log10(middle)
    return 1 + 1 / (1 + np.exp(4 * x)) + noise * np.random.default_rng(0).standard_normal(len(x))


@pytest.mark.parametrize("middle", [1e-4, 1e-3, 3e-2])
def test_the_rate_at_which_the_loss_falls_fastest_is_suggested(middle):
    found = range_test(falling(middle))
    assert np.log10(found.suggestion) == pytest.approx(np.log10(middle), abs=0.25)


def test_it_lies_a_decade_below_divergence_at_least():
    losses = falling(1e-2)
    end = int(np.searchsorted(RATES, 3e-2))
    found = range_test(losses[:end], diverged=True)
    assert found.suggestion == pytest.approx(RATES[end - 1] / 10, rel=0.05)
    assert "diverged at 0.0" in found.describe()


def test_a_loss_that_does_not_fall_gives_no_suggestion():
    found = range_test(2 + 0.1 * np.random.default_rng(0).standard_normal(100))
    assert found.suggestion is None
    assert "no suggestion" in found.describe()


def test_divergence_is_a_loss_above_the_first_and_no_scatter():
    flat = (1 + 0.1 * np.random.default_rng(0).standard_normal(50)).tolist()
    assert not any(has_diverged(flat[: i + 1]) for i in range(50))
    assert has_diverged([*flat, *[1.6] * 5])
    assert has_diverged([*flat, float("nan")])
    assert not has_diverged([*np.linspace(-1, -3, 50).tolist(), *[-1.5] * 5])
    assert has_diverged([*np.linspace(-1, -3, 50).tolist(), *[2.0] * 5])


def test_lines_fit_values_and_slopes_and_pass_over_what_is_no_number():
    values, slopes = fit_lines(np.array([*np.arange(10.0), float("nan")]), 5)
    np.testing.assert_allclose(values[:8], np.arange(8.0), atol=1e-9)
    np.testing.assert_allclose(slopes[:8], 1.0, atol=1e-9)
    assert np.isfinite(values).all()


def test_it_finds_a_rate_that_learns_and_writes_nothing_but_what_was_asked_for(tmp_path, capfd):
    arguments = ["mae_digits", *QUICK, f"run_dir={tmp_path / 'run'}", "--steps", "60", "--to", "1000"]
    assert main(["lr-find", *arguments, "--out", str(tmp_path / "lr")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lr"]
    found = json.loads((tmp_path / "lr" / "lr_find.json").read_text())
    assert (tmp_path / "lr" / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    out, error = capfd.readouterr()
    assert "findfont" not in error, "formulas at the axis ask for fonts that are not everywhere"
    assert f"suggestion: optimizer.lr={found['suggestion']:g}" in out
    assert 1e-4 < found["suggestion"] < 1, "the recipe's own rate is 3e-3"
    assert found["diverged_at"] is not None
    assert found["suggestion"] < found["lowest"] < found["diverged_at"]
    assert len(found["losses"]) < 60


def test_the_recipes_own_rate_and_schedule_do_not_count(tmp_path):
    tests = []
    for own in (["optimizer.lr=3e-3"], ["optimizer.lr=1e-5", "schedule={name: linear, warmup_ratio: 0.5}"]):
        config, _ = load_config("mae_digits", [*QUICK, *own, f"run_dir={tmp_path}"])
        tests.append(lr_find(config, 1e-4, 1e-1, 20))
    assert tests[0].rates == tests[1].rates
    np.testing.assert_allclose(tests[0].losses, tests[1].losses, rtol=1e-5)


def test_all_optimizers_are_scaled_together_and_it_says_so(tmp_path):
    own = "optimizer_overrides={discriminator: {lr: 1e-3}}"
    config, _ = load_config(GAN[0], [*GAN[1:], "train.global_batch_size=16", own, f"run_dir={tmp_path}"])
    found = lr_find(config, 1e-5, 1e-3, 20)
    assert found.optimizers == {"discriminator": 2.0, "generator": 1.0}
    losses = np.linspace(2, 1, 20) ** 3
    told = RangeTest(found.rates, tuple(losses), diverged=False, optimizers=found.optimizers).describe()
    assert "all 2 optimizers were scaled together" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "1", "--to", "0.1"], "rates must rise"),
        (["--steps", "3"], "too few to smooth"),
        (["init_from=s3://bucket/run"], "lr-find writes nothing"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, message, capfd):
    assert main(["lr-find", "mae_digits", *arguments]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path):
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        arguments = ["lr-find", "mae_digits", *QUICK, f"run_dir={tmp_path / 'run'}", "--steps", "25",
                     "--from", "1e-5", "--to", "1e-2", "--out", str(out)]  # fmt: skip
        assert run("pretrain", arguments, processes=ranks).stdout.count("suggestion") == 1
        found.append(json.loads((out / "lr_find.json").read_text()))
    np.testing.assert_allclose(found[0]["losses"], found[1]["losses"], rtol=1e-4)
    assert found[0]["suggestion"] == found[1]["suggestion"]
