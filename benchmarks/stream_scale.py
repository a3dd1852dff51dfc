"""What the stream costs at scale: python -m benchmarks.stream_scale

Opening 10⁵ shards of 10⁴ samples, finding positions, resuming in mid-epoch, what clusters fetch of remote data
(simulated by the code that shares out the positions), packing 10⁷ documents, feeding tokens of short and of long ones,
scanning headers, memory over ten epochs. Times are processor time where other load would disturb; one core.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from data_tools.order.packing import WINDOW, RowPlan
from data_tools.order.shuffle import FINAL, Order
from data_tools.order.window_order import WindowOrder
from data_tools.stream.packed import PackedStream

Row = tuple[str, str]
PARTS = ("opening", "egress", "egress_packed", "packing", "tokens", "long_documents", "scanning", "memory")


def resident() -> float:
    """MB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def opening(folder: Path) -> list[Row]:
    from data_tools.formats.manifest import Shard, make_manifest, read_manifest, write_manifest
    from data_tools.order.shuffle import choose_layout

    shards = [Shard(f"part-{i // 1000:03d}/{i:06d}.tar", 10_000, 0, 10**9, i) for i in range(100_000)]
    write_manifest(make_manifest(shards, ("jpg", "json")), folder)
    del shards
    before, begin = resident(), time.process_time()
    manifest = read_manifest(folder / "manifest.json")
    order = Order(manifest.counts, choose_layout(10**9, 1e5), seed=0)
    opened, memory = time.process_time() - begin, resident() - before
    begin = time.process_time()
    order.indices(np.array([123_456_789_012]))  # a position in epoch 123: nothing before it is computed
    resumed = time.process_time() - begin
    positions = np.arange(10**8, 10**8 + 10**6)
    begin = time.process_time()
    order.indices(positions)
    each = (time.process_time() - begin) / len(positions)
    return [
        ("open 10⁵ shards, 10⁹ samples", f"{opened:.2f} s, {memory:.0f} MB"),
        ("resume at position 1.2·10¹¹", f"{resumed * 1e3:.2f} ms"),
        ("find a position, among 10⁶", f"{each * 1e9:.0f} ns"),
    ]


def measure_egress(order: Order, nodes: int, batch: int) -> tuple[float, int]:
    """(samples fetched in the first epoch over the samples there are, ranges fetched), by all nodes together."""
    from data_tools.order.sharing import find_runs, share_equally

    longest = order.layout.chunk + 1
    ranges = []
    for start in range(0, order.samples, batch):
        runs = find_runs(order, np.arange(start, start + batch), nodes)
        takes = share_equally(runs.home, nodes)
        at_home = takes == runs.home  # what a node takes of others, or of nobody's, is a range of its own
        first, stop = np.where(at_home, runs.first, runs.index), np.where(at_home, runs.stop, runs.index + 1)
        ranges.append(((takes * order.samples + first) * longest + stop - first)[runs.epoch == 0])
    fetched = np.unique(np.concatenate(ranges))
    return float((fetched % longest).sum() / order.samples), len(fetched)


def egress() -> list[Row]:
    from data_tools.order.shuffle import choose_layout

    samples, sample_bytes = 10**6, 1e5
    order = Order(np.full(100, samples // 100), choose_layout(samples, sample_bytes), seed=0)
    rows = []
    for gpus in (8, 64, 128, 256, 512, 1024, 2048, 3072, 3200, 4096):
        batch = -(-2048 // gpus) * gpus  # one sample a GPU on the largest
        share, ranges = measure_egress(order, -(-gpus // 8), batch)
        mean = share * samples * sample_bytes / ranges / 1e6
        rows.append((f"{gpus:,} GPUs fetch, of 100 GB an epoch", f"{share:.3f} ×, {mean:.1f} MB a request"))
    return rows


def measure_packed_egress(
    order: Order, plan: RowPlan, ends: np.ndarray, nodes: int, batch: int, stretch: int, window: int = WINDOW
) -> tuple[float, int]:
    """(bytes fetched in the first epoch over those there are, requests), by all nodes together, of packed documents.

    ends: (documents + 1,) where each document begins, in bytes, and the last ends. What is fetched is kept for one turn
    of the lanes. All documents lie in one shard.
    """
    from data_tools.order.packing import find_stretches
    from data_tools.order.sharing import find_runs, share_equally

    documents, fetched = len(ends) - 1, []
    for start in range(0, order.samples // batch * batch, 512 * batch):
        positions = np.arange(start, min(start + 512 * batch, order.samples // batch * batch))
        rows = find_runs(order, positions, nodes)
        takes = np.concatenate([share_equally(home, nodes) for home in rows.home.reshape(-1, batch)])
        spots = order.spots(positions, 0)
        turn = np.where(spots.lane == FINAL, order.lane_chunks, spots.group)
        pieces = plan.take(rows.index)
        counts = np.diff(pieces.row_start)
        away = np.repeat(takes != rows.home, counts)
        shard = np.zeros_like(pieces.document), np.full_like(pieces.document, documents)
        first, stop = find_stretches(pieces.document, *shard, stretch, window)
        first, stop = np.where(away, pieces.document, first), np.where(away, pieces.document + 1, stop)
        place = np.repeat(turn * nodes + takes, counts) * documents + first
        fetched.append(np.unique(place * (window + 1) + stop - first))
    place, size = np.divmod(np.unique(np.concatenate(fetched)), window + 1)
    first = place % documents
    return float((ends[first + size] - ends[first]).sum() / ends[-1]), len(place)


def write_index(folder: Path, lengths: np.ndarray, per_shard: int) -> None:
    """Manifest and sidecars of documents of ``lengths`` that lie nowhere, two bytes a token, as `tokenize` has them."""
    from data_tools.formats.manifest import Shard, make_manifest, write_manifest
    from data_tools.formats.sidecar import Sidecar, count_blocks
    from data_tools.storage.checksum import crc32

    shards = []
    for number, first in enumerate(range(0, len(lengths), per_shard)):
        tokens = lengths[first : first + per_shard].astype(np.uint32)
        size = (512 + -(-(128 + 2 * tokens.astype(np.int64)) // 512) * 512).astype(np.uint32)
        ends, none = np.cumsum(size, dtype=np.uint64), np.zeros(len(size), dtype=np.uint32)
        blocks = np.zeros(int(count_blocks(size).sum()), dtype=np.uint32)
        data = Sidecar(ends - size, size, np.ones(len(size), dtype=np.uint8), none, tokens, blocks).to_bytes()
        (folder / f"{number:08d}.sidecar").write_bytes(data)
        shards.append(
            Shard(f"http://nowhere.invalid/{number:06d}.tar", len(size), 0, int(ends[-1]), crc32(data))
        )
    write_manifest(make_manifest(shards, ("tokens.npy",), has_length=True, has_crc=True), folder)


def measure_fetched(packed: PackedStream, nodes: int, batch: int) -> tuple[float, int]:
    """(bytes that ``nodes`` fetch of remote rows in the first epoch over those there are, requests).

    It asks for what each node needs for the rows that it takes from others, and for those of the first rounds of each
    turn, in which it meets all of its windows: no other row needs anything else.
    """
    from data_tools.order.sharing import share_equally

    order, rows = packed.order, packed.samples_per_epoch // batch * batch
    assert isinstance(order, WindowOrder)
    takes, asked = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=bool)
    for start in range(0, rows, batch):
        step = np.arange(start, start + batch)
        home = packed.homes(step, nodes)
        assert home is not None
        takes[start : start + batch] = here = share_equally(home, nodes)
        lane, _, round_, _ = order._lanes(step)
        asked[start : start + batch] = (here != home) | ((lane >= 0) & (round_ < 8))
    sizes: dict[tuple[int, str], int] = {}
    for node in range(nodes):
        packed.share_among(nodes, node)
        mine = np.flatnonzero(asked & (takes == node))
        for first in range(0, len(mine), 1 << 17):
            for _, segment, _ in packed.needs(mine[first : first + (1 << 17)]):
                sizes[node, segment.name] = segment.bytes
    return sum(sizes.values()) / float(packed.dataset.manifest.bytes.sum()), len(sizes)


def egress_packed(folder: Path) -> list[Row]:
    from data_tools.dataset.open import open_dataset
    from data_tools.storage.segments import FetchOptions
    from data_tools.stream.packed import PackedStream
    from data_tools.stream.samples import Stream

    found = []
    for mean in (550, 4_000, 400_000):
        here = folder / str(mean)
        here.mkdir()
        documents = int(2.5e10 / (2 * mean + 900))  # 25 GB: three turns of the lanes
        lengths = np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1.0, documents).astype(np.int64) + 1
        write_index(here, lengths, -(-documents // 24))
        packed = PackedStream(Stream(open_dataset(here, fetching=FetchOptions(cache_folder=folder))), 1024)
        data = float(packed.dataset.manifest.bytes.sum())
        found.append((f"documents of {mean:,} tokens: rows are full", f"{packed.efficiency:.2%}"))
        for nodes in (1, 8, 40, 64, 128, 256, 375, 400, 506, 512):
            share, requests = measure_fetched(packed, nodes, nodes * -(-1024 // nodes // 8) * 8)
            mean_request = f"{share * data / requests / 1e6:.2f} MB a request"
            found.append(
                (f"… {nodes} nodes fetch, of {data / 1e9:.0f} GB an epoch", f"{share:.3f} ×, {mean_request}")
            )
    return found


def packing(folder: Path) -> list[Row]:
    from data_tools.stream.packing_table import find_row_plan, read_row_plan

    documents = 10**7

    def lengths(first: int, last: int) -> np.ndarray:
        """Of ordinary text: 550 tokens on average, one document in ten longer than a row."""
        return np.random.default_rng(first).lognormal(5.8, 1.0, last - first).astype(np.uint32) + 1

    def find() -> tuple[float, RowPlan]:
        read_row_plan.cache_clear()  # as another process begins
        begin = time.process_time()
        plan = find_row_plan(lengths, documents, "benchmark", 1024, "best_fit", 4096, folder)
        plan.take(np.arange(0, plan.rows, plan.rows // 256))
        return time.process_time() - begin, plan

    packed, plan = find()
    opened, _ = find()
    size = sum(path.stat().st_size for path in folder.rglob("*.bin"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return [
        ("packing 10⁷ documents, once", f"{packed:.1f} s: {packed / documents * 1e6:.2f} µs a document"),
        ("… how full its rows are, memory meanwhile", f"{plan.efficiency:.2%}, {peak:.0f} MB"),
        ("… its table", f"{size / documents:.1f} bytes a document"),
        ("… opening it later, and 256 of its rows", f"{opened * 1e3:.1f} ms"),
    ]


def long_documents(folder: Path) -> list[Row]:
    from data_tools.dataset.open import open_dataset
    from data_tools.dataset.reader import Store
    from data_tools.formats.shard_writer import ShardWriter, finish_dataset
    from data_tools.stream.packed import PackedStream
    from data_tools.stream.samples import Stream

    with ShardWriter(folder, with_length=True) as writer:
        for i in range(16):
            array = io.BytesIO()
            np.save(array, np.arange(400_000, dtype=np.uint16))
            writer.write(f"{i:02d}", {"tokens.npy": array.getvalue()}, 400_000)
        finish_dataset(writer)
    read: list[int] = []

    def counted(store: Store, shard: int, offset: int, size: int) -> bytes:
        read.append(size)
        return plain(store, shard, offset, size)

    plain, Store.read_local = Store.read_local, counted  # type: ignore[method-assign]
    packed = PackedStream(Stream(open_dataset(folder)), 1024)
    rows = packed.samples_per_epoch
    begin = time.process_time()
    for _ in packed.samples(np.arange(rows)):
        pass
    rate = rows / (time.process_time() - begin)
    return [
        ("rows of 1,024 out of documents of 400,000 tokens, one core", f"{rate:,.0f} rows/s"),
        ("… bytes read / bytes of the rows", f"{sum(read) / (16 * 800_000):.1f}"),
    ]


def tokens(folder: Path) -> list[Row]:
    from data_tools.__main__ import main
    from data_tools.dataset.open import open_dataset
    from data_tools.stream.loader import Loader
    from data_tools.stream.packed import PackedStream
    from data_tools.stream.samples import Stream

    main(["tokenizer", "sample:sotu", str(folder / "tokenizer"), "--vocabulary", "4096"])
    main(["tokenize", "sample:sotu", str(folder / "tokens"), "--tokenizer", str(folder / "tokenizer")])
    begin = time.process_time()
    packed = PackedStream(Stream(open_dataset(folder / "tokens")), 1024)
    planned = time.process_time() - begin
    loader = Loader(
        packed,
        lambda s, _: {k: s[k] for k in ("tokens", "document_ids", "position_ids")},
        global_batch_size=32,
    )
    steps = iter(loader)
    next(steps)
    begin = time.process_time()
    for _ in range(100):
        next(steps)
    rate = 100 * 32 / (time.process_time() - begin)
    return [
        ("packing efficiency, State of the Union paragraphs, 1,024 tokens", f"{packed.efficiency:.2%}"),
        (f"planning the packing of these {len(packed.dataset):,} paragraphs, once", f"{planned:.2f} s"),
        ("packed rows, one core", f"{rate:,.0f} rows/s, {rate * 1024 / 1e6:.1f} M tokens/s"),
    ]


def scanning(folder: Path) -> list[Row]:
    from data_tools.formats.scan import scan_file
    from data_tools.formats.shard_writer import ShardWriter

    with ShardWriter(folder) as writer:
        for i in range(20_000):
            writer.write(f"{i:06d}", {"txt": b"x" * 700, "cls": b"1"})
    path = folder / "000000.tar"
    begin = time.process_time()
    scan_file(path)
    ours = 20_000 / (time.process_time() - begin)
    begin = time.process_time()
    with tarfile.open(path) as archive:
        count = sum(1 for _ in archive)
    theirs = count / 2 / (time.process_time() - begin)
    return [("header scan, two members a sample", f"{ours:,.0f} samples/s ({ours / theirs:.1f} × tarfile)")]


def memory() -> list[Row]:
    from data_tools.dataset.open import open_dataset
    from data_tools.stream.loader import Loader
    from data_tools.stream.samples import Stream

    loader = Loader(
        Stream(open_dataset("sample:digits")),
        lambda s, _: {"x": s["image"]},
        global_batch_size=240,
        workers=2,
    )
    marks = []
    begin = time.process_time()
    for step in loader:
        if step.position % 12_000 == 0:
            marks.append(resident())
        if step.position == 10 * 12_000:
            break
    loader.close()
    rate = 10 * 12_000 / (time.process_time() - begin)
    return [
        ("memory after epoch 1 and epoch 10 of the digits", f"{marks[1]:.0f} MB and {marks[10]:.0f} MB"),
        ("digits, PNG 28², two threads", f"{rate:,.0f} samples per processor-second"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.stream_scale --output benchmarks/results/stream_scale.md",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the table there too")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            alone = arguments.one in ("memory", "egress")
            rows = globals()[arguments.one](*([] if alone else [Path(folder)]))
        print("".join(f"| {name} | {value} |\n" for name, value in rows), end="")
        return 0
    report = f"# The stream at scale ({os.cpu_count()} cores)\n\n| what | measured |\n| --- | --- |\n"
    for part in PARTS:  # a process each: memory is measured
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.stream_scale", "--one", part],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        report += "".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("|"))
    print(report)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
