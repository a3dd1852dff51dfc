"""A held-out loss over whole batches takes no part of one: its parts on several ranks would not be alike."""

from __future__ import annotations

import pytest

from data_tools.errors import UserError
from tests.pretrain.evaluation.test_validation import measure


def test_what_makes_no_whole_batch_is_left_out_and_too_few_are_refused(tmp_path):
    assert measure("simclr", tmp_path) == measure("simclr", tmp_path, "validation.samples=36")
    assert measure("simclr", tmp_path) != measure("simclr", tmp_path, "validation.samples=24")
    with pytest.raises(UserError, match=r"11 samples .* make no batch of 12, over which simclr has its loss"):
        measure("simclr", tmp_path, "validation.samples=11")
