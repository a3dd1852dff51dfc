"""Braces, patterns, lists of tars, folders and manifests: each is one data set."""

import json

import pytest
from bad_server import bad_server
from small_data import write_images

from data_tools.dataset import expand
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folders(tmp_path):
    return [write_images(tmp_path / name, samples=6, per_shard=2) for name in "ab"]


def numbers_of(dataset):
    return [sample["json"]["number"] for sample in dataset]


def set_about(folder, **about):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "about": about}))


LOCAL = [
    ("a/{000000..000002}.tar", 1),
    ("a/{000000,000002}.tar", None),
    ("a/*.tar", 1),
    ("a/*", 1),
    ("a/00000?.tar", 1),
    ("{a,b}", 2),
    ("{a,b}/*.tar", 2),
    ("*", 2),
    ("{a,b}/manifest.json", 2),
    (["a", "b"], 2),
    (["a", "b/000000.tar", "b/000001.tar", "b/000002.tar"], 2),
    (["a/*.tar", "b"], 2),
]


@pytest.mark.parametrize("source, times", LOCAL)
def test_many_of_this_machine_open_as_one(folders, source, times, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    expected = [0, 1, 4, 5] if times is None else [*range(6)] * times
    assert numbers_of(open_dataset(source)) == expected


@pytest.mark.parametrize("source", ["{}/a/{{000000..000002}}.tar", "{}/{{a,b}}"])
def test_many_of_a_server_open_as_one(folders, source):
    with bad_server(folders[0].parent) as (url, _):
        dataset = open_dataset(source.format(url))
        assert numbers_of(dataset) == [*range(6)] * (2 if "a,b" in source else 1)
        with pytest.raises(UserError, match=r"does not list its files; name them, \{000000..000099\}"):
            open_dataset(f"{url}/a/*.tar")


def test_patterns_of_an_object_store_are_found(folders):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for folder in folders:
        for path in folder.iterdir():
            memory.pipe_file(f"/many/{folder.name}/{path.name}", path.read_bytes())
    assert numbers_of(open_dataset("memory://many/a/*.tar")) == [*range(6)]
    assert numbers_of(open_dataset(["memory://many/a", str(folders[1])])) == [*range(6)] * 2
    assert numbers_of(open_dataset("memory://many/*")) == [*range(6)] * 2


def test_joined_data_sets_keep_their_identity_and_what_they_agree_on(folders):
    for folder, licence in zip(folders, ("CC0", "MIT"), strict=True):
        set_about(folder, classes=["cat", "dog"], licence=licence)
    joined = open_dataset(folders)
    assert joined.manifest.about == {"classes": ["cat", "dog"], "licence": "CC0; MIT"}
    assert joined.fingerprint == open_dataset(folders).fingerprint
    assert len(joined) == 12 and joined.manifest.urls[0] == str(folders[0].resolve() / "000000.tar")


def test_what_means_two_things_is_not_joined(folders):
    with pytest.raises(UserError, match="stands in two of the data sets that are to be one; name it once"):
        open_dataset([folders[0], folders[0]])
    set_about(folders[0], classes=["cat", "dog"])
    set_about(folders[1], classes=["dog", "cat"])
    with pytest.raises(
        UserError, match=r"a and .*b: have different classes, so that a number does not mean the same"
    ):
        open_dataset(folders)


@pytest.mark.parametrize(
    "source, message",
    [
        ("a/{000000..000002.tar", "braces do not close"),
        ("{0..99}.tar", "stands for more than 50 names"),
        ("a/{000000..000007}.tar", r"000003\.tar: cannot be read"),
        ("nothing/*.tar", "no such data set"),
        ([], "an empty list: no such data set"),
        (["a", "pipe:cat x"], "pipe: URLs run a shell"),
    ],
)
def test_names_of_nothing_are_one_line(folders, source, message, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    monkeypatch.setattr(expand, "MOST", 50)
    with pytest.raises(UserError, match=message):
        open_dataset(source)


def test_a_folder_with_braces_in_its_name_is_that_folder(tmp_path):
    assert len(open_dataset(write_images(tmp_path / "{a,b} [1]*", samples=2))) == 2
