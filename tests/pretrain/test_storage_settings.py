"""`data.storage`: how a run reaches data on other machines, and what it writes down of their secrets."""

import base64
import logging
import sys
from pathlib import Path

import pytest
import yaml

from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.objects import StorageOptions
from pretrain.config.load import build_config, load_config
from pretrain.config.sections import Config
from pretrain.config.show import describe_config, format_config, to_dict
from pretrain.data import build_stream, open_sources, open_validation
from pretrain.run.folder import RunFolder, is_free
from pretrain.tracking import digest_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "data_tools"))
from small_data import write_images
from store_server import store_server

SECRET = "s3cr3t"


def load(*overrides: str) -> tuple[Config, dict[str, str]]:
    return load_config("mae_digits", list(overrides))


def test_storage_options_cache_and_prefetch_are_settings(tmp_path):
    config, _ = load(
        "data.storage.options.endpoint_url=https://minio.example", "data.storage.options.anon=true",
        "data.storage.options.headers={X-Own: own}", "data.storage.options.other={region: eu}",
        f"data.storage.cache_folder={tmp_path}", "data.storage.cache_bytes=1000", "data.storage.prefetch_bytes=100",
        "data.storage.patience=7",
    )  # fmt: skip
    fetching = config.data.storage.fetching
    assert (fetching.cache, fetching.cache_bytes, fetching.prefetch_bytes) == (tmp_path, 1000, 100)
    assert fetching.retry.patience == 7
    assert fetching.retry.storage == StorageOptions(
        "https://minio.example", anon=True, headers={"X-Own": "own"}, other={"region": "eu"}
    )
    assert build_config(to_dict(config)) == config and is_free("data.storage.options.headers.X-Own")
    with pytest.raises(UserError, match="did you mean 'profile'"):
        load("data.storage.options.profil=me")
    plain = to_dict(load()[0])
    del plain["data"]["storage"]  # as in runs of before
    assert build_config(plain) == load()[0]
    assert digest_settings(plain) == digest_settings(to_dict(config))


def test_a_run_uses_passwords_and_signatures_and_writes_none(tmp_path, caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "data" / "a", samples=4)
    write_images(tmp_path / "data" / "b", samples=6)
    write_images(tmp_path / "data" / "c", samples=8)
    with store_server(tmp_path / "data") as (url, server):
        server.login = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        own = url.replace("//", f"//me:{SECRET}@")
        config, origin = load(
            f"data.path={{'{own}/a': 1, '{own}/b?sig={SECRET}': 2}}", f"data.validation='{own}/c'",
            f"probe.train='{own}/c'", f"data.storage.options.headers={{X-Api-Key: {SECRET}}}",
            f"run_dir={tmp_path / 'run'}",
        )  # fmt: skip
        sources = open_sources(config.data)
        assert list(sources) == [f"{url}/a", f"{url}/b"] == list(config.data.weights)
        assert len(open_validation(config.data, sources)) == 8
        stream = build_stream(config, sources)
        assert server.requests[0][2]["X-Api-Key"] == SECRET
    RunFolder(config.folder).open(config)
    told = [(config.folder / "config.yaml").read_text(), format_config(config, origin), str(stream.state())]
    told += [describe_config(config, origin, "mae_digits"), caplog.text]
    assert SECRET not in "".join(told)
    again = build_config(yaml.safe_load(told[0]))
    assert again.data.weights == config.data.weights
    RunFolder(config.folder).open(config)


def test_data_by_another_signature_are_the_same_data_named_twice():
    with pytest.raises(UserError, match=r"names https://h/a\.tar twice"):
        load("data.path={'https://h/a.tar?sig=1': 1, 'https://h/a.tar?sig=2': 1}")


def test_cached_folders_of_a_run_lie_where_the_recipe_says(tmp_path):
    config, _ = load(f"data.storage.cache_folder={tmp_path / 'own'}")
    write_images(tmp_path / "data", samples=4)
    with store_server(tmp_path / "data") as (url, _):
        dataset = open_dataset(url, fetching=config.data.storage.fetching)
        assert len(list(dataset)) == 4
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"remote", "segments"}
