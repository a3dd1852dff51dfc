"""Reading from other machines: what is waited for and what is not, odd names, logins, signatures, kept connections."""

import base64
import datetime
import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from small_data import write_images
from store_server import store_server

from data_tools.dataset.damage import Damage, DamagedSampleError
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage import counters, hedging
from data_tools.storage.hedging import Latencies, read_hedged
from data_tools.storage.objects import (
    Retry,
    StorageOptions,
    read_all,
    read_range,
    redact_urls,
    redacted,
    size_of,
)
from data_tools.storage.retry import RefusedError
from data_tools.storage.segments import FetchOptions
from data_tools.storage.urls import join_url, quoted
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream

PATIENT = Retry(patience=60, first_wait=0.01, host_patience=0.1)
FAST = FetchOptions(retry=Retry(patience=2.0, timeout=0.5, first_wait=0.01, longest_wait=0.05))
SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASQUERADE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "data", samples=20, per_shard=10)


def keys_of(dataset):
    return [sample["__key__"] for sample in dataset]


@pytest.fixture
def certificate(tmp_path):
    """A certificate that nobody has signed, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    (tmp_path / "cert.pem").write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://no-such-host.invalid/a.tar", "unknown host, looked up for 0 s"),
        ("http://host:port/a.tar", "cannot be opened"),
        ("https://CERTIFICATE/a.tar", "bad certificate"),
        ("s3://bucket/a.tar", "cannot be opened|needs fsspec"),
        ("nonsense://bucket/a.tar", "fsspec cannot open it|needs fsspec"),
        ("http://SERVER/400.tar", "cannot be opened .HTTP 400"),
    ],
)
def test_what_cannot_pass_ends_at_once_in_one_line(url, message, tmp_path, certificate, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with store_server(tmp_path) as (http, server), store_server(tmp_path, certificate) as (https, _):
        server.always = {"status": 400}
        place = url.replace("https://CERTIFICATE", https).replace("http://SERVER", http)
        begun = time.monotonic()
        with pytest.raises(UserError, match=message) as caught:
            read_range(place, 0, 10, PATIENT)
    assert time.monotonic() - begun < PATIENT.patience / 2
    assert "\n" not in str(caught.value)


def test_access_refused_ends_a_run_and_is_no_damage(folder):
    with store_server(folder) as (url, server):
        dataset = open_dataset(url, fetching=FAST)
        dataset.valid_sidecar(0)
        server.always = {"status": 403}
        with pytest.raises(RefusedError, match="HTTP 403"):
            read_all(f"{url}/000000.tar", PATIENT)
        with pytest.raises(
            UserError, match=r"access refused .HTTP 403.; give a fresh signature, or credentials"
        ):
            dataset[0]


def test_a_server_that_asks_for_time_gets_it_within_the_patience(folder):
    with store_server(folder) as (url, server):
        server.answers = [{"status": 429, "headers": {"Retry-After": "1"}}]
        begun = time.monotonic()
        assert read_range(f"{url}/000000.tar", 0, 10, PATIENT)
        assert 1 <= time.monotonic() - begun < PATIENT.patience / 2
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        server.always = {
            "status": 503,
            "headers": {"Retry-After": later.strftime("%a, %d %b %Y %H:%M:%S GMT")},
        }
        with pytest.raises(UserError, match=r"no answer for 60 s .HTTP 503, which asks to wait 3[56]\d\d s"):
            read_range(f"{url}/000000.tar", 0, 10, PATIENT)


def test_another_range_than_the_one_asked_for_is_not_taken(folder):
    with store_server(folder) as (url, server):
        server.answers = [{"headers": {"Content-Range": "bytes 512-521/9999"}}]
        assert read_range(f"{url}/000000.tar", 0, 10, PATIENT) == (folder / "000000.tar").read_bytes()[:10]
        server.always = {"headers": {"Content-Range": "bytes 0-99/9999"}}
        with pytest.raises(UserError, match="asked for bytes 5-14, the answer is 'bytes 0-99/9999'"):
            read_range(f"{url}/000000.tar", 5, 10, Retry(patience=0.05, first_wait=0.01))


def test_connections_are_kept(folder):
    with store_server(folder) as (url, server):
        for start in range(8):
            read_range(f"{url}/000000.tar", start, 10, PATIENT)
        size_of(f"{url}/000000.tar", PATIENT)
        assert len(server.requests) == 9 and server.connections == 1


NAMES = ["plain", "two words", "a#1", "100%", "100%25", "Größe–é", "a+b&c=d;e,f", "what?"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_kinds_are_found(tmp_path, name):
    folder = write_images(tmp_path / name, samples=2)
    (folder / "000000.tar").rename(folder / f"{name}.tar")
    (folder / "000000.tar.sidecar").rename(folder / f"{name}.tar.sidecar")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shardlist"][0]["url"] = f"{name}.tar"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with store_server(tmp_path) as (url, _):
        base = join_url(url, name)
        assert keys_of(open_dataset(base, fetching=FAST)) == ["000000", "000001"]
        if "?" not in name and name != "100%25":  # as the user would type it; the last one is an escape then
            assert read_range(f"{url}/{name}/{name}.tar", 0, 10)
    assert quoted(base) == base


def test_a_login_in_the_url_and_one_in_netrc_are_sent(folder, tmp_path, monkeypatch):
    from data_tools.storage import http

    with store_server(folder) as (url, server):
        server.login = "Basic " + base64.b64encode(f"me:{SECRET}/@".encode()).decode()
        assert keys_of(open_dataset(url.replace("//", f"//me:{SECRET}%2F%40@"), fetching=FAST))
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}/@\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        http.read_netrc.cache_clear()
        assert size_of(f"{url}/000000.tar", PATIENT)
        http.read_netrc.cache_clear()


def test_headers_of_the_options_are_sent(folder):
    retry = Retry(storage=StorageOptions(headers={"X-Own": "yes"}))
    with store_server(folder) as (url, server):
        assert keys_of(open_dataset(url, fetching=FetchOptions(retry=retry)))
        assert all(headers.get("X-Own") == "yes" for _, _, headers in server.requests)


def test_options_go_to_the_file_systems_that_know_them():
    options = StorageOptions("https://minio.example", "me", anon=True, requester_pays=True, other={"a": 1})
    assert options.for_filesystem("s3") == {
        "endpoint_url": "https://minio.example", "profile": "me", "requester_pays": True, "anon": True, "a": 1
    }  # fmt: skip
    assert options.for_filesystem("gs") == {
        "endpoint_url": "https://minio.example", "requester_pays": True, "token": "anon", "a": 1
    }  # fmt: skip
    assert StorageOptions().for_filesystem("s3") == {}


def test_a_signed_url_is_read_and_its_signature_stands_nowhere(folder, tmp_path, caplog):
    """It fails on HEAD, as signatures are for one method; the next signature finds what the first has indexed."""
    caplog.set_level(logging.DEBUG)
    with store_server(folder) as (url, server):
        fingerprints = []
        for number in range(2):
            server.signature = f"X-Amz-Signature={SECRET}{number}&X-Amz-Expires=3600"
            dataset = open_dataset(f"{url}/000000.tar?{server.signature}", fetching=FAST)
            fingerprints.append(dataset.fingerprint)
            assert len(keys_of(dataset)) == 10
            assert dataset.manifest.urls == [f"{url}/000000.tar"]
        assert fingerprints[0] == fingerprints[1]
        stream = Stream(dataset)
        server.always = {"status": 404}
        for segment in (tmp_path / "cache" / "segments").glob("*/0*"):
            segment.unlink()
        with pytest.raises(UserError, match="stand-ins failed too") as caught:
            stream.sample(0)
        with pytest.raises(DamagedSampleError) as damaged:
            dataset[0]
        server.signature = "another"
        with pytest.raises(UserError) as refused:
            open_dataset(f"{url}/000001.tar?X-Amz-Signature={SECRET}", fetching=FAST)
    told = [str(error.value) for error in (caught, damaged, refused)] + [str(stream.shards(np.arange(1)))]
    told += [path.read_bytes().decode("latin1") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert SECRET not in caplog.text + "".join(told)


def test_shards_that_somebodys_manifest_signs_are_named_without_it():
    error = DamagedSampleError(
        f"https://me:{SECRET}@h/a.tar?sig={SECRET}", "k", f"https://h/a?sig={SECRET}: HTTP 404"
    )
    damage = Damage(0, error.shard, error.name, error.reason)
    assert damage == Damage(0, "https://h/a.tar", "k", "https://h/a: HTTP 404") and SECRET not in str(error)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("https://me:p@ss@host/a.tar?sig=x", "https://host/a.tar"),
        ("s3://bucket/a b.tar", "s3://bucket/a b.tar"),
        ("shards/what?.tar", "shards/what?.tar"),
    ],
)
def test_urls_are_shown_without_login_and_query(text, expected):
    assert redacted(text) == expected


def test_urls_in_a_text_are_shown_without_login_and_query():
    text = "cannot open https://me:pw@host/a.tar?X-Amz-Signature=a%2Fb;c&d=e; see 's3://k:s@b/x?y', is it?"
    assert redact_urls(text) == "cannot open https://host/a.tar; see 's3://b/x', is it?"


def test_a_straggler_is_asked_twice_and_the_first_answer_counts(folder, monkeypatch):
    monkeypatch.setattr(hedging, "_latencies", Latencies())
    with store_server(folder) as (url, server):
        for _ in range(hedging.ENOUGH):
            read_range(f"{url}/000000.tar", 0, 10, PATIENT)
        server.answers = [{"wait": 3.0}]
        before = counters.total()
        assert len(read_range(f"{url}/000000.tar", 0, 10, PATIENT)) == 10
        now = counters.total() - before
        assert (now.hedges, now.hedges_won, now.requests) == (1, 1, 1)


def test_a_store_that_is_slow_as_a_whole_is_not_asked_twice_as_much(monkeypatch):
    monkeypatch.setattr(hedging, "LEAST", 0.0)
    latencies, calls = Latencies(), []
    for _ in range(hedging.ENOUGH):
        latencies.add("kind", 0.0)
    for _ in range(4):
        read_hedged(lambda: calls.append(time.sleep(0.02)), "kind", latencies)
    assert len(calls) <= 4 + hedging.SHARE * (4 + 2 * hedging.ENOUGH) + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_closed_waits_for_no_outage(folder, workers):
    with store_server(folder) as (url, server):
        fetching = FetchOptions(retry=Retry(patience=300, first_wait=20))
        dataset = open_dataset(url, fetching=fetching)
        loader = Loader(Stream(dataset), lambda s, r: {"n": 1}, global_batch_size=2, workers=workers)
        dataset.valid_sidecar(0), dataset.valid_sidecar(1)
        server.always = {"status": 503}
        steps = iter(loader)

        def take():
            with suppress(RuntimeError):  # its pool is closed
                next(steps)

        taker = threading.Thread(target=take, daemon=True)
        if workers:
            taker.start()
        else:
            loader._reader = loader.stream.read_ahead()
            loader._reader.advance(0, loader._next, loader._mine)
        time.sleep(0.3)
        begun = time.monotonic()
        loader.close()
        while [t for t in threading.enumerate() if t.name.startswith(("fetch", "data_"))]:
            assert time.monotonic() - begun < 30
            time.sleep(0.01)


def test_a_process_that_fails_does_not_wait_for_what_it_fetches(folder, tmp_path):
    """Threads that fetch ahead end with the process; another one, for only its end shows that."""
    with store_server(folder) as (url, server):
        open_dataset(url, fetching=FAST).valid_sidecar(0)
        script = f"""
from data_tools.dataset.open import open_dataset
from data_tools.storage.segments import FetchOptions, Retry
store = open_dataset({url!r}, fetching=FetchOptions(retry=Retry(patience=300, first_wait=100)))._store
import urllib.request; urllib.request.urlopen({url + "/down"!r}).close()
store.cache().expect(store.segment(0, 0), 0)
import time; time.sleep(0.3)
raise SystemExit(3)
"""
        (folder / "down").write_text("")

        def go_down():
            while not any(path == "/down" for _, path, _ in list(server.requests)):
                time.sleep(0.01)
            server.always = {"status": 503}

        threading.Thread(target=go_down, daemon=True).start()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        ended = subprocess.run([sys.executable, "-c", script], env=environment, timeout=30, check=False)
        assert ended.returncode == 3
        assert server.requests[-1][1] == "/000000.tar"
