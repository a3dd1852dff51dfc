"""How much memory a rank needs to start a large model under FSDP, and whether its weights are those of one process.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.start_memory OUT SETTING=VALUE …   # each rank's shards
    python -m benchmarks.start_memory OUT SETTING=VALUE …                                     # then the control
    python -m benchmarks.start_memory OUT --compare

Settings are those of the recipe `clm_sotu`. Memory is the growth of the process's resident set (Linux) from before the
model is built until the engine has prepared it; the control builds the model whole and hashes the ranks' pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.config.load import load_config
from pretrain.config.sections import Config
from pretrain.data import first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import World
from pretrain.engine.shards import local
from pretrain.objectives.base import Objective
from pretrain.run.assemble import prepare_engine
from pretrain.run.run import build_objective, shards_weights
from pretrain.weights.start import load_starting_weights


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most) of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def fingerprint(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().contiguous().view(-1).numpy().data, digest_size=8).hexdigest()


def named_parameters(objective: Objective) -> dict[str, Tensor]:
    return {
        f"{role}.{n}": p for role, module in objective.roles.items() for n, p in module.named_parameters()
    }


def measure_rank(config: Config) -> dict[str, Any]:
    """Start as a run does: build, shard, fill; what that took of this rank's memory, and what its shards hold."""
    dataset = first_of(open_sources(config.data))
    engine = start_engine(config)
    forget_peak()
    before, started = resident_bytes("VmRSS"), time.perf_counter()
    objective = build_objective(config, dataset, shards_weights(config))
    prepare_engine(config, objective, engine, load=lambda: load_starting_weights(config, objective))
    seconds, peak = time.perf_counter() - started, resident_bytes("VmHWM") - before
    parameters = named_parameters(objective)
    shards = dict(zip(parameters, local(parameters.values()), strict=True))
    found = {
        "ranks": engine.world.size,
        "parameters": sum(p.numel() for p in parameters.values()),
        "sharded_bytes": sum(s.numel() * s.element_size() for s in shards.values()),
        "largest_bytes": max(p.numel() * p.element_size() for p in parameters.values()),
        "peak_bytes": peak,
        "seconds": seconds,
        "shards": {name: fingerprint(shard) for name, shard in shards.items()},
    }
    engine.close()
    return found


def fingerprint_whole(config: Config, ranks: int) -> dict[str, list[str]]:
    """By parameter, the fingerprint of each rank's piece, of the model that one process builds."""
    objective = build_objective(config, first_of(open_sources(config.data)))
    load_starting_weights(config, objective)
    found = {}
    for name, parameter in named_parameters(objective).items():
        pieces = list(parameter.chunk(ranks))
        pieces += [parameter[:0]] * (ranks - len(pieces))
        found[name] = [fingerprint(piece) for piece in pieces]
    return found


def compare(folder: Path) -> dict[str, Any]:
    """The worst rank's memory, and the parameters whose shards differ from the control's."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank_*.json"))]
    whole = json.loads((folder / "whole.json").read_text())
    different = {
        name
        for i, rank in enumerate(ranks)
        for name, value in rank["shards"].items()
        if whole[name][i] != value
    }
    worst = max(ranks, key=lambda rank: rank["peak_bytes"] / rank["sharded_bytes"])
    return {
        "ranks": len(ranks),
        **{
            name: worst[name]
            for name in ("parameters", "sharded_bytes", "largest_bytes", "peak_bytes", "seconds")
        },
        "ratio": worst["peak_bytes"] / worst["sharded_bytes"],
        "compared": len(whole),
        "different": sorted(different),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    if options.compare:
        print(json.dumps(compare(options.out), indent=1))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    config, _ = load_config("clm_sotu", ["engine=fsdp", *options.settings])
    world = World.from_environment()
    if world.size > 1:
        (options.out / f"rank_{world.rank}.json").write_text(json.dumps(measure_rank(config)))
    else:
        ranks = len(list(options.out.glob("rank_*.json")))
        (options.out / "whole.json").write_text(json.dumps(fingerprint_whole(config, ranks)))


if __name__ == "__main__":
    main()
