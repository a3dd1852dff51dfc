"""The search for a micro-batch that fits."""

from __future__ import annotations

from itertools import pairwise

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.run.batch_find import GIB, Sizes, Try, batch_find, find_largest, possible_sizes, try_size
from tests.tiny_run import SMALL


@pytest.mark.parametrize("share", [1, 2, 12, 97, 256, 360, 1000])
def test_the_largest_divisor_that_fits_is_found_in_few_tries(share):
    sizes = [n for n in range(1, share + 1) if share % n == 0]
    for most in range(share + 2):
        tried = []

        def fits(size, most=most, tried=tried):
            tried.append(size)
            return size <= most

        expected = max((size for size in sizes if size <= most), default=None)
        assert find_largest(sizes, fits) == expected
        assert len(set(tried)) == len(tried) <= 2 * share.bit_length() + 1
        assert all(b <= 2 * a or b == sizes[sizes.index(a) + 1] for a, b in pairwise(tried))


def test_sizes_divide_the_share_of_every_stage_of_a_growing_batch():
    warmup = "train.batch_size_warmup=[[24, 10]]"
    config, _ = load_config("mae_digits", ["train.global_batch_size=64", warmup])
    assert possible_sizes(config, 1) == [1, 2, 4, 8, 32, 64]  # of 24, what is larger takes all at once
    assert possible_sizes(config, 2) == [1, 2, 4, 16, 32]


def test_the_fastest_that_fits_is_recommended_and_the_largest_told():
    found = Sizes({4: Try(4, 10.0, 1), 8: Try(8, 30.0, 1), 16: Try(16, 20.0, 1)}, [64, 32])
    text = found.describe(share=64)
    assert "largest that fits: 16; 32 does not" in text
    assert "train.micro_batch_size=8 (30.0 samples/s)" in text
    assert "(all of a rank's share)" in Sizes({4: Try(4, 10.0, 1)}, []).describe(share=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 3}, "3 ranks cannot share it equally"),
        ({"memory_gib": -1.0}, "must be greater"),
        ({"ranks": 0}, "--ranks 0"),
    ],
)
def test_what_cannot_be_meant_is_told(settings, message):
    config, _ = load_config("mae_digits", [])
    with pytest.raises(UserError, match=message):
        batch_find(config, **settings)


@pytest.mark.slow
def test_it_finds_what_fits_into_a_limit(tmp_path, monkeypatch):
    """Real processes under a real limit; a prime share has two sizes, of which one does not fit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Threads of workers have arenas of memory of their own, which would blur a limit as narrow as this.
    settings = [*SMALL, "train.global_batch_size=8191", "data.workers=0", f"run_dir={tmp_path / 'run'}"]
    config, _ = load_config("mae_digits", settings)
    one = try_size(config, 1, 1, None)
    told = []
    found = batch_find(config, memory_gib=one.peak_bytes / GIB + 0.15, tell=told.append)
    assert (list(found.fitting), found.too_large) == ([1], [8191])
    assert found.fitting[1].samples_per_second > 0
    assert any("8,191    does not fit" in line for line in told)
    with pytest.raises(UserError, match=r"not even 1 sample\(s\)"):
        batch_find(config, memory_gib=0.01, tell=told.append)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_ranks_try_together_and_another_mistake_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = [*SMALL, "train.global_batch_size=2", "data.workers=0", f"run_dir={tmp_path / 'run'}"]
    config, _ = load_config("mae_digits", settings)
    found = batch_find(config, ranks=2, tell=lambda _: None)
    assert list(found.fitting) == [1]
    config, _ = load_config("mae_digits", [*settings, f"data.path={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"micro_batch_size=1, rank 0: .*nowhere"):
        batch_find(config, tell=lambda _: None)
