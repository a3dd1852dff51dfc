"""What reading costs beside the bytes, counted in calls, which no other load on the machine changes."""

import sys

import numpy as np

from data_tools.dataset.open import open_dataset
from data_tools.decode.options import DecodeOptions
from data_tools.storage.counters import TIMED
from data_tools.stream.samples import Stream
from tests.data_tools.small_data import write_tokens

MOST = 15
"""Calls of Python functions for a sample that lies here: 17 where each was asked for marks, damage and its path."""


def test_a_sample_that_lies_here_takes_few_calls(tmp_path):
    dataset = open_dataset(write_tokens(tmp_path, [5] * 40 * TIMED, per_shard=50), DecodeOptions(raw=True))
    stream, positions = Stream(dataset), np.arange(len(dataset))
    list(stream.samples(positions))  # files and sidecars are open now
    events = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: events.append(event))
    try:
        samples = list(stream.samples(positions))
    finally:
        sys.setprofile(before)
    assert events.count("call") / len(samples) < MOST
