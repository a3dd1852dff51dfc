"""A held-out loss is one of samples that are not trained on."""

import numpy as np
import pytest

from data_tools.dataset.open import open_dataset
from data_tools.dataset.selection import write_selection
from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import open_sources, open_validation


def test_a_validation_set_with_samples_of_the_training_set_is_refused(tmp_path):
    digits = open_dataset("sample:digits")
    write_selection(digits, np.arange(5, 11_000), tmp_path / "train")
    for name, first in (("overlapping", 10_999), ("apart", 11_000)):
        write_selection(digits, np.arange(first, 12_000), tmp_path / name)
    config, _ = load_config(
        "mae_digits", [f"data.path={tmp_path / 'train'}", f"data.validation={tmp_path / 'apart'}"]
    )
    sources = open_sources(config.data)
    assert len(open_validation(config.data, sources)) == 1000
    config, _ = load_config(
        "mae_digits", [f"data.path={tmp_path / 'train'}", f"data.validation={tmp_path / 'overlapping'}"]
    )
    with pytest.raises(UserError, match=r"overlapping: 1 of its samples stand in data.path="):
        open_validation(config.data, sources)
