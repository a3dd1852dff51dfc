"""What is judged by is not what was learned from."""

import pytest

from data_tools.errors import UserError
from finetune.config import load_config
from finetune.protocol import open_bench


def test_a_test_set_with_samples_of_the_training_set_is_refused(job):
    words = [word for word in job if not word.startswith(("data.train", "data.test"))]
    config, _ = load_config("digits", [*words, "data.train=sample:digits", "data.test=sample:digits"])
    with pytest.raises(
        UserError, match=r"data.test=sample:digits: 12,000 of its samples stand in data.train"
    ):
        open_bench(config)
