"""Every byte of a checkpoint is written by one rank: of shards that replicas hold, by one of the replicas."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretrain.engine.saving import own_share

REPLICAS, SHARDS = 2, 2
RANKS = REPLICAS * SHARDS
ROWS = {"a": 8, "b": 4, "c": 4, "d": 2}


def share_of(rank: int) -> dict:
    """What a rank of HSDP writes of a small state; no rank says a word to another."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        mesh = DeviceMesh("cpu", torch.arange(RANKS).view(REPLICAS, SHARDS))
        sharded = {
            name: DTensor.from_local(
                torch.zeros(rows // SHARDS), mesh, [Replicate(), Shard(0)], run_check=False
            )
            for name, rows in ROWS.items()
        }
        whole = {f"whole_{name}": torch.zeros(rows) for name, rows in ROWS.items()}
        return own_share({"roles": sharded, "guards": whole, "step": 3}, rank, RANKS)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares():
    return [share_of(rank) for rank in range(RANKS)]


def test_one_replica_writes_each_shard_and_all_of_its_ranks_agree(shares):
    replicas = [
        shares[i * SHARDS : (i + 1) * SHARDS] for i in range(REPLICAS)
    ]  # of a replica, its ranks' shares
    for name in ROWS:
        writes = [{name in share.get("roles", {}) for share in replica} for replica in replicas]
        assert sorted(writes, key=str) == [{False}, {True}], "all shards, and once"
    rows = [sum(ROWS[name] for name in replica[0]["roles"]) for replica in replicas]
    assert max(rows) - min(rows) <= 2, "in about equal parts"


def test_one_rank_writes_each_tensor_that_all_hold_and_rank_0_the_rest(shares):
    for name in ROWS:
        assert sum(f"whole_{name}" in share.get("guards", {}) for share in shares) == 1
    assert all(len(share["guards"]) == 1 for share in shares), "four tensors for four ranks"
    assert [share.get("step") for share in shares] == [3, None, None, None]
