"""A small labelled data set of real digits and a tiny run, made once for all tests of this folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import make_run

from data_tools.dataset.open import open_dataset


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> Path:
    """Plain WebDataset: member extensions → bytes, one dictionary a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for i, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{i:06d}.{extension}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def digit_samples(name: str, count: int) -> list[dict[str, bytes]]:
    """The first embedded digits, with a JSON member: {"year", "parity"}; every tenth has no parity."""
    dataset = open_dataset(name)
    samples = []
    for i in range(count):
        sample = dataset[i]
        png = io.BytesIO()
        Image.fromarray(sample["image"][..., 0]).save(png, "png")
        parity = None if i % 10 == 0 else ("even", "odd")[sample["label"] % 2]
        fields = json.dumps({"year": 1800 + i, "parity": parity}).encode()
        samples.append({"png": png.getvalue(), "cls": str(sample["label"]).encode(), "json": fields})
    return samples


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory):
    """(train, test): tars of 200 and 101 digits."""
    folder = tmp_path_factory.mktemp("digits")
    train = write_tar(folder / "train" / "0.tar", digit_samples("sample:digits", 200))
    return train, write_tar(folder / "test" / "0.tar", digit_samples("sample:digits_test", 101))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def job(few_digits, run_folder):
    """Overrides of the recipe `digits` for a job of seconds."""
    train, test = few_digits
    return [
        f"encoder={run_folder}", f"data.train={train}", f"data.test={test}", "train.steps=3",
        "train.global_batch_size=8", "protocol.labels_per_class=[2, 4]", "protocol.draws=4",
    ]  # fmt: skip
