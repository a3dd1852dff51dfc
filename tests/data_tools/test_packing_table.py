"""A large packing table is made once, by one process, and mapped by all."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from data_tools.order import packing_table
from data_tools.order.packing import best_fit_rows, cut_rows
from data_tools.order.packing_table import find_row_plan

LENGTHS = np.random.default_rng(0).integers(0, 300, 12_000).astype(np.uint32)


@pytest.fixture
def packed(monkeypatch):
    """How often something was packed."""
    times = []

    def pack(*arguments):
        times.append(arguments)
        return best_fit_rows(*arguments)

    monkeypatch.setattr(packing_table, "best_fit_rows", pack)
    return times


def assert_same(plan, other):
    for name in packing_table.ARRAYS:
        assert np.array_equal(getattr(plan, name), getattr(other, name))
    assert plan.length == other.length and plan.rows == other.rows


def find(folder, length=512, method="best_fit", window=4096, lengths=LENGTHS):
    packing_table.read_row_plan.cache_clear()  # as another process begins
    return find_row_plan(lengths, length, method, window, folder)


def test_a_table_is_packed_once_and_mapped_afterwards(tmp_path, packed):
    first, second = find(tmp_path), find(tmp_path)
    assert len(packed) == 1
    assert isinstance(second.document, np.memmap)
    assert_same(first, best_fit_rows(LENGTHS, 512))
    assert_same(second, first)


def test_another_row_length_window_method_or_document_is_another_table(tmp_path, packed):
    find(tmp_path)
    longer = LENGTHS.copy()
    longer[-1] += 1
    assert_same(find(tmp_path, length=256), best_fit_rows(LENGTHS, 256))
    assert_same(find(tmp_path, window=1024), best_fit_rows(LENGTHS, 512, 1024))
    assert_same(find(tmp_path, method="cut"), cut_rows(LENGTHS, 512))
    assert_same(find(tmp_path, lengths=longer), best_fit_rows(longer, 512))
    assert len(packed) == 4


def test_a_plan_travels_to_a_worker_as_the_place_where_it_lies(tmp_path):
    plan = find(tmp_path)
    message = pickle.dumps(plan)
    assert len(message) < 1000
    assert_same(pickle.loads(message), plan)


def test_a_data_set_that_cannot_be_written_keeps_its_tables_in_the_cache(tmp_path, monkeypatch):
    (tmp_path / ".packing").write_text("in the way, as a read-only disk would be")
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    find(tmp_path)
    assert list((tmp_path / "cache" / "packing").glob("*/document.npy"))


def test_those_that_ask_at_once_wait_for_one_that_packs(tmp_path, packed):
    plans = []
    threads = [threading.Thread(target=lambda: plans.append(find_row_plan(LENGTHS, 512, "best_fit", 4096, tmp_path)))
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packed) == 1 and len(plans) == 4


def test_a_few_documents_leave_no_files(tmp_path):
    find(tmp_path, lengths=LENGTHS[:100])
    assert list(tmp_path.iterdir()) == []
