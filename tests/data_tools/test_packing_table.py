"""A large packing table is made once, by one process, and mapped by all."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from small_data import best_fit_rows, cut_rows

from data_tools.errors import UserError
from data_tools.order import packing
from data_tools.stream import packing_table
from data_tools.stream.packing_table import find_row_plan

COLUMNS = ("row_start", "document", "start", "size")
LENGTHS = np.random.default_rng(0).integers(0, 300, 2_500).astype(np.uint32)


@pytest.fixture
def packed(monkeypatch):
    """How often something was packed."""
    times = []

    def pack(*arguments):
        times.append(arguments)
        return packing.pack(*arguments)

    monkeypatch.setattr(packing_table, "pack", pack)
    return times


def assert_same(plan, rows):
    found = plan.take(np.arange(plan.rows))
    for name in COLUMNS:
        assert np.array_equal(getattr(found, name), getattr(rows, name))
    assert plan.length == rows.length and plan.efficiency == pytest.approx(rows.efficiency)


def find(folder, length=512, method="best_fit", window=4096, lengths=LENGTHS, identity="of these lengths"):
    packing_table.read_row_plan.cache_clear()  # as another process begins
    return find_row_plan(
        lambda first, last: lengths[first:last], len(lengths), identity, length, method, window, folder
    )


def test_a_table_is_packed_once_and_mapped_afterwards(tmp_path, packed):
    first, second = find(tmp_path), find(tmp_path)
    assert len(packed) == 1
    assert isinstance(second.columns["document"], np.memmap)
    assert_same(first, best_fit_rows(LENGTHS, 512))
    assert_same(second, best_fit_rows(LENGTHS, 512))


def test_another_row_length_window_method_or_document_is_another_table(tmp_path, packed):
    find(tmp_path)
    longer = LENGTHS.copy()
    longer[-1] += 1
    assert_same(find(tmp_path, length=256), best_fit_rows(LENGTHS, 256))
    assert_same(find(tmp_path, window=1024), best_fit_rows(LENGTHS, 512, 1024))
    assert_same(find(tmp_path, method="cut"), cut_rows(LENGTHS, 512))
    assert_same(find(tmp_path, lengths=longer, identity="of others"), best_fit_rows(longer, 512))
    assert len(packed) == 5


def test_a_plan_travels_to_a_worker_as_the_place_where_it_lies(tmp_path):
    plan = find(tmp_path)
    message = pickle.dumps(plan)
    assert len(message) < 1000
    assert_same(pickle.loads(message), plan.take(np.arange(plan.rows)))


def test_a_table_that_was_cut_is_named(tmp_path):
    find(tmp_path)
    (column,) = tmp_path.glob(".packing/*/size.bin")
    column.write_bytes(column.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"damaged packing table .* delete it"):
        find(tmp_path)


def test_a_data_set_that_cannot_be_written_keeps_its_tables_in_the_cache(tmp_path, monkeypatch):
    (tmp_path / ".packing").write_text("in the way, as a read-only disk would be")
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    find(tmp_path)
    assert list((tmp_path / "cache" / "packing").glob("*/document.bin"))


def test_those_that_ask_at_once_wait_for_one_that_packs(tmp_path, packed):
    plans = []
    threads = [threading.Thread(target=lambda: plans.append(find(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packed) == 1 and len(plans) == 4


def test_a_few_documents_leave_no_files(tmp_path):
    find(tmp_path, lengths=LENGTHS[:100])
    assert list(tmp_path.iterdir()) == []
