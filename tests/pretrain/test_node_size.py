"""How many ranks share a node: what every rank's loader must think alike."""

import pytest

from pretrain.ops.world import World, whole_nodes


@pytest.mark.parametrize(("ranks", "told", "size"), [(16, 8, 8), (1, 1, 1), (12, 8, 1), (4, 0, 1), (3, 3, 3)])
def test_ranks_that_make_no_whole_nodes_stand_for_themselves(ranks, told, size):
    assert whole_nodes(ranks, told) == size


def test_a_process_alone_is_a_node(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # one that trains alone inside a larger job
    assert World().find_node_size() == 1
