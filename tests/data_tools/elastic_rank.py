"""One rank of the elastic test: takes steps, records its keys, dies when it is told to."""

import json
import os
import sys
import time
from pathlib import Path

from data_tools.dataset.open import open_dataset
from data_tools.order.shuffle import Layout
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream


def key_only(sample, rng):
    return {"number": sample["json"]["number"]}


def main() -> None:
    folder, out, rank, world_size, workers, kind = sys.argv[1:7]
    rank, world_size = int(rank), int(world_size)
    checkpoint = Path(out) / "state.json"
    stream = Stream(open_dataset(folder), seed=11, layout=Layout(lanes=12, chunk=7, group=2))
    loader = Loader(
        stream, key_only, 11, 12, rank=rank, world_size=world_size, workers=int(workers), worker_kind=kind
    )
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    with (Path(out) / f"taken-{rank}-of-{world_size}-{os.getpid()}.jsonl").open("w") as record:
        for step in loader:
            record.write(json.dumps([step.position, step.keys[0]]) + "\n")
            record.flush()
            state = loader.state_dict()
            partial = Path(out) / f".done-{rank}.partial"
            partial.write_text(json.dumps([os.getpid(), state]))
            partial.replace(
                Path(out) / f"done-{rank}.json"
            )  # a kill in mid-write must not lose what was done
            time.sleep(0.01)


if __name__ == "__main__":
    main()
