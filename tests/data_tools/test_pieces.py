"""A row of tokens out of a long document reads the piece that it holds, and no more."""

import dataclasses
import pickle

import numpy as np
import pytest
from bad_server import bad_server
from small_data import npy, write_tokens

from data_tools.commands.verify import verify
from data_tools.dataset import pieces
from data_tools.dataset.open import open_dataset
from data_tools.dataset.reader import Store
from data_tools.formats.manifest import read_manifest, write_manifest
from data_tools.formats.shard_writer import ShardWriter, finish_dataset
from data_tools.formats.sidecar import BLOCK, read_sidecar
from data_tools.storage.checksum import crc32
from data_tools.storage.objects import Retry
from data_tools.storage.segments import FetchOptions
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream

LENGTHS = [90_000, 700, 40_000, 60_001]  # 4 bytes a token
ROW = 256
FAST = FetchOptions(retry=Retry(patience=2.0, timeout=0.5, first_wait=0.01, longest_wait=0.05))


def pack(source):
    return PackedStream(Stream(open_dataset(source, fetching=FAST), seed=1), ROW)


def rows_of(packed, positions=range(60)):
    return [packed.sample(position) for position in positions]


def expected_tokens(row):
    return np.concatenate([np.arange(at, at + n) + 1000 * int(key[3:]) for key, at, n in row["documents"]])


def without_blocks(folder):
    """Make the sidecars those of data that was written before blocks had checksums."""
    manifest, checksums = read_manifest(folder / "manifest.json"), []
    for path in sorted(folder.glob("*.sidecar")):
        data = dataclasses.replace(read_sidecar(path), blocks=None).to_bytes()
        path.write_bytes(data)
        checksums.append(crc32(data))
    write_manifest(dataclasses.replace(manifest, checksums=np.array(checksums, dtype=np.uint32)), folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    return write_tokens(tmp_path / "tokens", LENGTHS, per_shard=2)


@pytest.fixture
def read(monkeypatch):
    """Bytes of each read of a shard."""
    sizes = []

    def read_local(store, shard, offset, size):
        sizes.append(size)
        return plain(store, shard, offset, size)

    plain = Store.read_local
    monkeypatch.setattr(Store, "read_local", read_local)
    return sizes


def test_a_row_reads_its_piece_of_a_long_document(folder, read):
    for row in rows_of(pack(folder)):
        held = len(expected_tokens(row))
        assert np.array_equal(row["tokens"][:held], expected_tokens(row))
    assert max(read) <= 2 * BLOCK  # a whole document: 160,000 bytes and more
    assert sum(read) <= 60 * 2 * BLOCK + len(LENGTHS) * BLOCK


def test_sidecars_of_before_give_the_same_rows_and_read_a_document_once(folder, read):
    rows = rows_of(pack(folder))
    read.clear()
    before = rows_of(pack(without_blocks(folder)))
    assert [row["documents"] for row in before] == [row["documents"] for row in rows]
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(before, rows, strict=True))
    assert len(read) <= len(LENGTHS) + 1  # the short one is not kept


def test_whole_documents_are_kept_within_bounds(folder, read, monkeypatch):
    monkeypatch.setattr(pieces, "KEPT_BYTES", 1)
    packed = pack(without_blocks(folder))
    rows_of(packed, range(20))
    assert len(packed._documents._whole) == 1
    assert len(read) > len(LENGTHS) + 1


def test_a_flipped_bit_costs_the_rows_that_hold_its_block(folder):
    sound = rows_of(pack(folder), range(600))
    start = int(read_sidecar(folder / "000000.tar.sidecar").offset[0])
    with (folder / "000000.tar").open("r+b") as file:
        file.seek(start + 20 * BLOCK)
        byte = file.read(1)
        file.seek(start + 20 * BLOCK)
        file.write(bytes([byte[0] ^ 1]))
    rows = rows_of(pack(folder), range(600))
    hit = [row for row in rows if "__damage__" in row]
    assert 1 <= len(hit) <= BLOCK // (4 * ROW) + 2
    assert {d.name for row in hit for d in row["__damage__"]} == {"doc00000"}
    for row, before in zip(rows, sound, strict=True):
        kept = row["document_ids"] > 0
        assert "__damage__" in row or np.array_equal(row["tokens"][kept], before["tokens"][kept])


def test_a_row_fetches_parts_of_remote_documents(folder):
    sound = rows_of(pack(folder))
    with bad_server(folder) as (url, server):
        packed = pack(url)
        packed.sample(0)
        ranges = [asked for _, asked in server.requests if asked]
        fetched = [int(b) - int(a) + 1 for a, b in (r.removeprefix("bytes=").split("-") for r in ranges)]
        assert max(fetched) <= pieces.PART_BLOCKS * BLOCK
        rows = rows_of(packed)
        assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(rows, sound, strict=True))
        needed = {segment.name for _, segment, _ in packed.needs(np.arange(60))}
        there = {path.name for path in packed.dataset.store.cache().folder.iterdir() if path.name[0] != "."}
        assert there <= needed  # what is read was foreseen …
        assert sum(s.size for s in {s.name: s for _, s, _ in packed.needs(np.array([0]))}.values()) < 200_000


def test_a_long_document_among_short_ones_is_fetched_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    folder = write_tokens(tmp_path / "tokens", [9000] + [100] * 40)
    sound = rows_of(pack(folder), range(30))
    with bad_server(folder) as (url, server):
        packed = pack(url)
        rows = rows_of(packed, range(30))
        assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(rows, sound, strict=True))
        assert len([asked for _, asked in server.requests if asked]) == 1
        assert {segment.part for _, segment, _ in packed.needs(np.arange(30))} == {-1}


def test_pieces_of_a_document_that_verify_marked_are_padding(folder):
    start = int(read_sidecar(folder / "000000.tar.sidecar").offset[0])
    with (folder / "000000.tar").open("r+b") as file:
        file.seek(start + 20 * BLOCK)
        file.write(b"????")
    verify(open_dataset(folder), processes=1)
    damages = [damage for row in rows_of(pack(folder)) for damage in row.get("__damage__", ())]
    assert len(damages) > 2  # not only those of the block that is damaged
    assert all(damage.reason.startswith("marked by verify") for damage in damages)


@pytest.mark.parametrize("lengths", [LENGTHS, [9000] + [100] * 40], ids=["in parts", "with short ones"])
def test_what_arrives_damaged_is_fetched_again(tmp_path, monkeypatch, lengths):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    folder = write_tokens(tmp_path / "tokens", lengths)
    with bad_server(folder) as (url, server):
        packed = pack(url)
        server.faults["000000.tar"] = ["flip"]
        assert not any("__damage__" in row for row in rows_of(packed, range(30)))
        assert server.faults["000000.tar"] == []


def test_a_stream_that_is_sent_to_a_worker_reads_the_same(folder):
    packed = pack(folder)
    sound = rows_of(packed, range(9))
    sent = rows_of(pickle.loads(pickle.dumps(packed)), range(9))
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(sent, sound, strict=True))


def test_tokens_behind_another_member_are_read_with_the_whole_document(tmp_path):
    with ShardWriter(tmp_path, with_length=True) as writer:
        members = {"json": b"{}", "tokens.npy": npy(np.arange(50_000, dtype=np.uint16))}
        writer.write("doc00000", members, 50_000)
        finish_dataset(writer)
    assert rows_of(pack(tmp_path))[0]["documents"][0][0] == "doc00000"


def test_blocks_go_with_the_samples_that_are_taken(folder):
    sidecar = read_sidecar(folder / "000001.tar.sidecar", check=True)
    assert read_sidecar(folder / "000000.tar.sidecar").block_crcs(1) is None  # small
    assert len(sidecar.block_crcs(1)) == -(-int(sidecar.size[1]) // BLOCK)
    taken = sidecar.take(np.array([False, True]))
    assert np.array_equal(taken.block_crcs(0), sidecar.block_crcs(1))
