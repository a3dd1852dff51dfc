"""The report: one file from a run folder, at any time of the run, whatever is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from fake_run import CONFIG, EXCERPTS, STEPS, finetune_results, write_run

from pretrain.report.report import write_report


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The text of a full run's report."""
    run = write_run(tmp_path_factory.mktemp("runs") / "mae_digits")
    (run / "finetune").mkdir()
    (run / "finetune" / "finetune.json").write_text(json.dumps(finetune_results()))
    (run / "release").mkdir()
    (run / "release" / "README.md").write_text("---\nlicense: mit\n---\n# Digits\n\nAn encoder of digits.\n")
    return write_report(run).read_text()


class References(HTMLParser):
    """Everything that a browser would fetch, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            fetches = (
                name == "src" or (name == "href" and tag in ("link", "image", "script")) or name == "srcset"
            )
            if fetches and not (value or "").startswith("data:"):
                self.fetched.append(value or "")


def headings(html):
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_full_report_shows_every_part(full):
    assert headings(full) == [
        "Fine-tuning: digits",
        "What the model makes of it",
        "Training",
        "Probes",
        "Release",
    ]
    assert "finished" in full
    assert full.count("data:image/png;base64,") == 4
    assert "MAE pretraining of a ViT encoder on sample:digits: 1,000 of 1,000 steps in 50 s" in full
    assert "a kNN probe on the frozen encoder reaches 93.6 %, up from 82.0 % untrained" in full
    assert "mask_ratio: 0.75" in full
    assert "An encoder of digits." in full
    assert "license: mit" not in full


def test_report_fetches_nothing_and_its_ids_are_unique(full):
    references = References()
    references.feed(full)
    assert references.fetched == []
    assert not re.search(r"https?://|@import|url\((?!#)", full)
    assert len(references.ids) == len(set(references.ids))
    assert "<script" not in full


def test_finetuning_table_marks_the_best_and_gives_the_gain(full):
    rows = re.findall(r"<tr.*?</tr>", full, re.DOTALL)
    best = [row for row in rows if 'class="best"' in row]
    assert len(best) == 1
    assert "Fine-tuned" in best[0]
    assert re.search(r"With 10 labels a class, the pretrained encoder is 1\d\.\d points better", full)
    assert "over 10 draws" in full


def test_report_is_a_pure_function_of_the_folder(tmp_path):
    run = write_run(tmp_path / "run", steps=200)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_half_finished_run_says_so(tmp_path):
    html = write_report(write_run(tmp_path / "run", steps=330)).read_text()
    assert "not finished" in html
    assert f"330 of {STEPS:,} steps" in html
    assert headings(html) == ["What the model makes of it", "Training", "Probes"]


def test_empty_run_says_so(tmp_path):
    html = write_report(tmp_path).read_text()
    assert headings(html) == ["Nothing to show yet"]
    assert "no training step has been logged yet" in html


def test_results_file_of_another_place_is_shown(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([finetune_results(), finetune_results() | {"task": "more"}]))
    (tmp_path / "run").mkdir()
    assert {"Fine-tuning: digits", "Fine-tuning: more"} <= set(
        headings(write_report(tmp_path / "run", path).read_text())
    )


def test_text_is_shown_in_marked_spans_and_escaped(tmp_path):
    html = write_report(write_run(tmp_path / "run", steps=200, picture=EXCERPTS)).read_text()
    assert '<span class="wrong">honor </span>' in html
    assert '<span class="generated">are at peace' in html
    assert "before &lt;you&gt; this" in html


def test_every_phase_has_its_curve(tmp_path):
    html = write_report(
        write_run(tmp_path / "run", steps=300, phases=("generator", "discriminator"))
    ).read_text()
    assert "Last generator/loss" in html
    assert "Last discriminator/loss" in html
    assert "Training" in headings(html)


@pytest.mark.parametrize(
    "damage",
    [
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "pictures/step_00000200.png",
        "finetune/finetune.json",
    ],
)
def test_missing_and_damaged_parts_are_left_out(tmp_path, damage):
    run = write_run(tmp_path / "run", steps=200, picture=None)
    path = run / damage
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    assert "</html>" in write_report(run).read_text()
    if not damage.endswith(".png"):
        path.write_bytes(b"{half")
        assert "</html>" in write_report(run).read_text()


def test_losses_that_are_not_finite_do_not_break_the_report(tmp_path):
    run = write_run(tmp_path / "run", steps=100)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 110, "loss": "NaN", "time": 1800000010}\n')
    assert "nan" in write_report(run).read_text()


def test_picture_paths_that_leave_the_folder_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"private")
    run = write_run(tmp_path / "run", steps=100)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "picture", "step": 50, "path": "../secret.png"}\n')
    assert write_report(run).read_text().count("data:image/png") == 1  # step 0's own


def test_secrets_in_a_config_are_not_in_the_report(tmp_path):
    run = write_run(tmp_path / "run", steps=100)
    with (run / "config.yaml").open("a") as file:
        file.write("hub_token: pl4nted-s3cret\n")
    html = write_report(run).read_text()
    assert "pl4nted" not in html
    assert str(CONFIG["seed"]) in html
