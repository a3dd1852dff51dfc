"""The stream against its peers, on the same images, in one run: python -m benchmarks.stream

Peers (webdataset, mosaicml-streaming, litdata, megatron-energon) are measured where they are importable; install them
into an environment of their own. Each system runs in a fresh process, in rounds that take turns; its best round
counts. Shuffling on, two workers, batches of 64, uint8 224 × 224.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH, SIDE, WORKERS = 64, 224, 2
IMAGES, SHARD_IMAGES = 2000, 250
SEED = 0


# data


def photograph(number: int) -> bytes:
    """A 500 × 375 JPEG with the 1/f spectrum of natural images (Field, 1987) and their weaker colour channels."""
    rng = np.random.default_rng(number)
    fy, fx = np.meshgrid(np.fft.fftfreq(375), np.fft.rfftfreq(500), indexing="ij")
    spectrum = (rng.normal(size=(3, *fy.shape)) + 1j * rng.normal(size=(3, *fy.shape))) / (
        np.hypot(fx, fy) + 2e-3
    )
    planes = np.fft.irfft2(spectrum, s=(375, 500)).transpose(1, 2, 0)
    planes = planes / planes.std() * (50, 12, 12) + (120, 128, 128)  # Y, Cb, Cr
    buffer = io.BytesIO()
    Image.fromarray(planes.clip(0, 255).astype(np.uint8), "YCbCr").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_data(folder: Path) -> None:
    """The same JPEG bytes in each system's own format; a peer that is not installed is passed over."""
    from data_tools.formats.shard_writer import ShardWriter, finish_dataset

    pictures = [
        photograph(i % 500) for i in range(IMAGES)
    ]  # 500 different ones are different enough to decode
    writer = ShardWriter(folder / "tar", max_samples=SHARD_IMAGES)
    for i, data in enumerate(pictures):
        writer.write(f"{i:06d}", {"jpg": data})
    finish_dataset(writer)
    raw = ShardWriter(folder / "raw", max_samples=1000)
    payload = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    for i in range(5000):
        raw.write(f"{i:06d}", {"bin": payload})
    finish_dataset(raw)
    for name, make in (
        ("mosaicml-streaming", _make_mds),
        ("litdata", _make_lit),
        ("megatron-energon", _make_energon),
    ):
        try:
            make(folder, pictures)
        except ImportError:
            print(f"{name}: not installed", file=sys.stderr)


def _make_mds(folder: Path, pictures: list[bytes]) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"image": "jpeg"}) as writer:
        for data in pictures:
            writer.write({"image": Image.open(io.BytesIO(data))})


def _make_lit(folder: Path, pictures: list[bytes]) -> None:
    import litdata

    for i, data in enumerate(pictures):
        path = folder / "jpg" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    litdata.optimize(
        fn=_lit_sample,
        inputs=sorted(str(p) for p in (folder / "jpg").glob("*.jpg")),
        output_dir=str(folder / "lit"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def _lit_sample(path: str) -> Any:
    return {"image": Path(path).read_bytes()}


def _make_energon(folder: Path, pictures: list[bytes]) -> None:
    import megatron.energon  # noqa: F401 - is it there?
    import webdataset as wds

    with wds.ShardWriter(str(folder / "energon-%06d.tar"), maxcount=SHARD_IMAGES, verbose=0) as sink:
        for i, data in enumerate(pictures):
            sink.write({"__key__": f"{i:06d}", "jpg": data})
    (folder / "energon").mkdir()
    for path in folder.glob("energon-*.tar"):
        path.rename(folder / "energon" / path.name)
    command = [
        sys.executable,
        "-m",
        "megatron.energon.cli.main",
        "prepare",
        "--non-interactive",
        "--split-ratio",
        "1,0,0",
    ]
    command += ["--sample-type", "ImageSample", "--field-map", '{"image": "jpg"}', "--num-workers", "2"]
    subprocess.run([*command, str(folder / "energon")], check=True, stdout=subprocess.DEVNULL)


# systems: each yields the number of samples of a batch, forever


def _resized(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _shrink(sample: dict[str, Any], _: Any) -> dict[str, Any]:
    from data_tools.decode.resize import resize

    return {"image": resize(sample["image"], SIDE, SIDE)}


def ours(folder: Path, kind: str = "thread") -> Iterator[int]:
    import torch

    from data_tools.dataset.open import open_dataset
    from data_tools.decode.options import DecodeOptions
    from data_tools.stream.loader import Loader
    from data_tools.stream.samples import Stream

    torch.set_num_threads(1)
    stream = Stream(open_dataset(folder / "tar", DecodeOptions(min_side=SIDE)), SEED)
    loader = Loader(stream, _shrink, SEED, BATCH, workers=WORKERS, worker_kind=kind)
    for step in loader:
        assert step.micro_batches[0]["image"].shape == (BATCH, 3, SIDE, SIDE)
        yield BATCH


def ours_processes(folder: Path) -> Iterator[int]:
    return ours(folder, "process")


def webdataset(folder: Path) -> Iterator[int]:
    import webdataset as wds

    urls = sorted(str(p) for p in (folder / "tar").glob("*.tar"))
    data = wds.WebDataset(urls, resampled=True, shardshuffle=True, nodesplitter=wds.split_by_node)
    data = data.shuffle(1000).decode("pil").to_tuple("jpg").map(_first_resized).batched(BATCH)
    for batch in wds.WebLoader(data, batch_size=None, num_workers=WORKERS):
        yield len(batch[0])


def _first_resized(sample: Any) -> tuple[np.ndarray]:
    return (_resized(sample[0]),)


def webdataset_with_our_decoder(folder: Path) -> Iterator[int]:
    """What is left of the difference when webdataset is given the decoder and the resizing that we use."""
    import webdataset as wds

    urls = sorted(str(p) for p in (folder / "tar").glob("*.tar"))
    data = wds.WebDataset(urls, resampled=True, shardshuffle=True, nodesplitter=wds.split_by_node)
    data = data.shuffle(1000).to_tuple("jpg").map(_scaled_decode).batched(BATCH)
    for batch in wds.WebLoader(data, batch_size=None, num_workers=WORKERS):
        yield len(batch[0])


def _scaled_decode(sample: Any) -> tuple[np.ndarray]:
    import simplejpeg

    return (
        _shrink({"image": simplejpeg.decode_jpeg(sample[0], min_height=SIDE, min_width=SIDE)}, None)["image"],
    )


def streaming(folder: Path) -> Iterator[int]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            return _resized(super().__getitem__(at)["image"])

    data = Images(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    while True:
        for batch in DataLoader(data, batch_size=BATCH, num_workers=WORKERS):
            yield len(batch)


def litdata(folder: Path) -> Iterator[int]:
    import litdata as lit

    class Images(lit.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            image = Image.open(io.BytesIO(super().__getitem__(index)["image"]))
            return _resized(image)

    loader = lit.StreamingDataLoader(
        Images(str(folder / "lit"), shuffle=True), batch_size=BATCH, num_workers=WORKERS
    )
    while True:
        for batch in loader:
            yield len(batch)


def energon(folder: Path) -> Iterator[int]:
    from megatron.energon import (
        DefaultTaskEncoder,
        SampleDecoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
    )

    class Encoder(DefaultTaskEncoder):
        decoder = SampleDecoder(image_decode="pilrgb")

        def encode_sample(self, sample: Any) -> Any:
            sample.image = np.array(_resized(sample.image))
            return sample

    data = get_train_dataset(
        str(folder / "energon"), batch_size=BATCH, shuffle_buffer_size=1000, max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS), task_encoder=Encoder(),
    )  # fmt: skip
    for batch in get_loader(data):
        yield len(batch.image)


def raw_ours(folder: Path, checksums: bool = True) -> Iterator[int]:
    from data_tools.dataset.open import open_dataset
    from data_tools.decode.options import DecodeOptions
    from data_tools.storage.segments import FetchOptions
    from data_tools.stream.samples import Stream

    dataset = open_dataset(folder / "raw", DecodeOptions(raw=True), FetchOptions(checksums=checksums))
    stream, position = Stream(dataset, SEED), 0
    while True:
        yield sum(1 for _ in stream.samples(np.arange(position, position + 1000)))
        position += 1000


def raw_ours_unchecked(folder: Path) -> Iterator[int]:
    return raw_ours(folder, checksums=False)


def raw_webdataset(folder: Path) -> Iterator[int]:
    import webdataset as wds

    urls = sorted(str(p) for p in (folder / "raw").glob("*.tar"))
    data = wds.WebDataset(urls, resampled=True, shardshuffle=True).shuffle(1000)
    samples = iter(data)
    while True:
        for _ in range(1000):
            next(samples)
        yield 1000


IMAGE_SYSTEMS: dict[str, Callable[[Path], Iterator[int]]] = {
    "masquerade, threads": ours,
    "masquerade, processes": ours_processes,
    "webdataset": webdataset,
    "mosaicml-streaming": streaming,
    "litdata": litdata,
    "megatron-energon": energon,
    "webdataset + our decoder": webdataset_with_our_decoder,
}
RAW_SYSTEMS = {
    "masquerade, no checksums (webdataset has none)": raw_ours_unchecked,
    "masquerade, CRC of every sample": raw_ours,
    "webdataset": raw_webdataset,
}


Rate = tuple[float, float]  # samples a second, samples a second of processor time


def measure(name: str, systems: dict[str, Any], folder: Path, seconds: float) -> Rate:
    """Rates over ``seconds``, after the first batches have filled whatever is filled ahead."""
    batches = systems[name](folder)
    for _ in range(6):
        next(batches)
    begin, busy, samples = time.perf_counter(), processor_seconds(os.getpid()), 0
    while time.perf_counter() - begin < seconds:
        samples += next(batches)
    return samples / (time.perf_counter() - begin), samples / (processor_seconds(os.getpid()) - busy)


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its descendants, ended ones included: other load does not change it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                total += processor_seconds(int(child))
    return total


def rounds(
    group: str, systems: dict[str, Any], folder: Path, seconds: float, repeats: int
) -> dict[str, Rate]:
    """The best of ``repeats`` rounds for each system, each in a process of its own; systems take turns."""
    best: dict[str, Rate] = {}
    for _ in range(repeats):
        for name in systems:
            command = [
                sys.executable,
                "-m",
                "benchmarks.stream",
                "--one",
                group,
                name,
                str(folder),
                str(seconds),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RATE ")]
            if lines:
                wall, busy = map(float, lines[-1])
                before = best.get(name, (0.0, 0.0))
                best[name] = max(before[0], wall), max(before[1], busy)
            else:
                print(f"{name}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}", file=sys.stderr)
    return best


def table(title: str, rates: dict[str, Rate], ours_name: str) -> str:
    """Both rates and how many times ours is the system's."""
    lines = [
        f"## {title}",
        "",
        "| system | samples/s | ours / it | samples per processor-second | ours / it |",
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    wall, busy = rates[ours_name]
    for name, (w, b) in sorted(rates.items(), key=lambda item: -item[1][1]):
        lines.append(f"| {name}{_version(name)} | {w:,.0f} | {wall / w:.2f} | {b:,.0f} | {busy / b:.2f} |")
    return "\n".join(lines) + "\n"


def _version(name: str) -> str:
    distribution = re.split(r",| \+", name)[0]
    try:
        return f" ({importlib.metadata.version(distribution)})"
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.stream --output benchmarks/results/stream.md",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=6.0, help="of each round (default: 6)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--data", type=Path, help="keep the data there for another run")
    parser.add_argument("--output", type=Path, help="write the tables there too")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        group, name, folder, seconds = arguments.one
        systems = {"images": IMAGE_SYSTEMS, "raw": RAW_SYSTEMS}[group]
        wall, busy = measure(name, systems, Path(folder), float(seconds))
        print(f"RATE {wall} {busy}", flush=True)
        os._exit(0)  # peers' workers need not be waited for
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        if not (folder / "made.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_data(folder)
            (folder / "made.json").write_text(json.dumps({"images": IMAGES}))
        images = rounds("images", IMAGE_SYSTEMS, folder, arguments.seconds, arguments.repeats)
        raw = rounds("raw", RAW_SYSTEMS, folder, arguments.seconds / 2, arguments.repeats)
    title = f"JPEG 500×375 → uint8 {SIDE}², shuffled, batches of {BATCH}, {WORKERS} workers"
    report = "\n".join([
        f"# Stream: {os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}", "",
        f"Best of {arguments.repeats} rounds of {arguments.seconds:g} s that take turns; files in the page cache;"
        f" load average {os.getloadavg()[1]:.1f} at the end.", "",
        table(title, images, "masquerade, threads"),
        table("50 kB samples, no decoding, shuffled, one thread", raw, "masquerade, CRC of every sample"),
    ])  # fmt: skip
    print(report)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
