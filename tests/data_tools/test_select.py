"""select: samples by an expression that is parsed and never run, materialised as a manifest over the same shards."""

import json

import numpy as np
import pytest
from small_data import png, write_tokens

from data_tools.__main__ import main
from data_tools.dataset.expression import parse_expression
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter, finish_dataset

ROW = {
    "key": "a/7", "label": 2, "size": 1536, "length": None,
    "json": {"year": 1900, "title": "On Liberty", "tags": ["x", "y"], "meta": {"width": 640}, "a b": 1.5, "no": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("year == 1900 and label in (1, 2)", True),
        ("1800 < year <= 1899", False),
        ("not (year < 1900) and 'Lib' in title", True),
        ("meta.width // 100 * 100 - 1", 599),
        ("json['a b'] + tags[1] * 0", UserError),
        ("json['a b'] / 2 % 1", 0.75),
        ("'y' in tags or 1 / 0", True),
        ("tags[0] == 'x' != title", True),
        ("json.year", 1900),
        ("no is None and no < 3", False),
        ("no + 1 is None", True),
        ("length > 3 or length <= 3", False),
        ("size % 512 == 0 and key not in ['b']", True),
        ("title > 3", UserError),
        ("'a' * 1000000000", UserError),
        ("year / 0", UserError),
    ],
)  # fmt: skip
def test_an_expression_says_what_it_says(text, value):
    expression = parse_expression(text)
    if value is UserError:
        with pytest.raises(UserError, match="sample a/7"):
            expression(ROW)
    else:
        assert expression(ROW) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "key.upper()", "[x for x in tags]", "(lambda: 1)()", "9 ** 9 ** 9",
        "f'{key}'", "year := 3", "a if b else c", "1 << 99999999", "~year", "b'x'", "{1: 2}", "tags[year]", "tags[0:2]",
        "*tags", "year =", "", "yield", "\0", "(" * 5000, "-" * 9000 + "1", "1" * 20_000, "…",
    ],
)  # fmt: skip
def test_whatever_is_no_expression_is_refused_in_a_line(text):
    with pytest.raises(UserError) as refused:
        parse_expression(text)
    assert "\n" not in str(refused.value).strip().replace(text, "")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select") / "data"
    writer = ShardWriter(folder, max_samples=25)
    for i in range(90):
        members = {
            "png": png(i, 2),
            "cls": str(i % 3).encode(),
            "json": json.dumps({"year": 1900 + i}).encode(),
        }
        writer.write(f"{i:04d}", members if i != 40 else {**members, "json": b"{broken"})
    finish_dataset(writer, {"classes": ["cat", "dog", "fox"]})
    return open_dataset(folder)


def test_select_writes_a_manifest_over_the_same_shards(data, tmp_path, capsys):
    out, where = tmp_path / "out", "year >= 1930 and class_name == 'dog'"
    assert run_cli(lambda: main(["select", str(data.folder), str(out), "--where", where])) == 0
    assert "1 damaged" in capsys.readouterr().out
    chosen = open_dataset(out)
    expected = [i for i in range(30, 90) if i % 3 == 1 and i != 40]
    assert [sample["json"]["year"] - 1900 for sample in chosen] == expected
    assert not list(out.glob("*.tar")) and chosen.manifest.about["chosen"]["where"] == where
    in_python = data.where(where)
    assert list(in_python.keys()) == list(chosen.keys())
    assert len({data.fingerprint, chosen.fingerprint, in_python.fingerprint}) == 3
    assert list(in_python.where("year > 1960").keys()) == [f"{i:04d}" for i in expected if i > 60]
    other = tmp_path / "again"
    assert run_cli(lambda: main(["select", str(data.folder), str(other), "--where", where])) == 0
    assert open_dataset(other).fingerprint == chosen.fingerprint


def test_what_the_index_knows_is_asked_without_reading_shards(tmp_path):
    folder = write_tokens(tmp_path / "tokens", list(range(1, 101)), per_shard=30)
    for shard in folder.glob("*.tar"):
        shard.write_bytes(b"")
    chosen = open_dataset(folder).where("length > 90 and size < 10000 and shard == '000003.tar'")
    assert np.array_equal(chosen.lengths, np.arange(91, 101))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("yaer > 1900", "no sample has a column yaer; did you mean year?"),
        ("lable == 1", "did you mean label?"),
        ("length > 3", "no sample has a column length; there are"),
        ("year > 'x'", "year > 'x': sample 0000: '>' not supported"),
        ("year < 0", "holds for none of 90 samples"),
        ("import os", "not an expression"),
    ],
)
def test_a_mistake_in_an_expression_is_one_line_and_writes_nothing(data, tmp_path, capsys, where, message):
    out = tmp_path / "out"
    assert run_cli(lambda: main(["select", str(data.folder), str(out), "--where", where])) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()
