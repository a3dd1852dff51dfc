"""`python -m pretrain list`: what it says is so, is readable, and is what the pages say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pretrain.__main__ import main
from pretrain.run.listing import CANNOT, RUNS, WIDTH, fit_columns, list_all, read_head, stack

ROOT = Path(__file__).parents[2]
FOUND = list_all()
IMAGES = {name for name, about in FOUND["encoders"].items() if about["modality"] == "image"}


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading."""
    text = (ROOT / page).read_text("utf-8").partition(f"\n## {heading}\n")[2]
    rows = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert rows, heading
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.group().splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def encoders_in(cell: str) -> set[str]:
    """Encoders that a page says an objective runs on; what follows a semicolon are conditions."""
    if re.match(r"(any|every encoder) of images", cell):
        return IMAGES
    return set(FOUND["encoders"]) if cell in ("any", "every encoder") else set(names(cell.partition(";")[0]))


def fitting(objective: str) -> set[str]:
    return {encoder for encoder, reason in FOUND["pairs"][objective].items() if reason is None}


@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "What is supported"), ("docs/support.md", "Which objective on which encoder")],
)
def test_the_pages_name_every_objective_with_the_encoders_that_it_runs_on(page, heading):
    rows = {objective: row for row in table(page, heading) for objective in names(row[0])}
    assert set(rows) == set(FOUND["objectives"])
    for objective, row in rows.items():
        assert encoders_in(row[2]) == fitting(objective), objective


def test_the_readme_says_what_objectives_hide_and_names_their_recipes():
    for row in table("README.md", "What is supported"):
        abouts = [FOUND["objectives"][objective] for objective in names(row[0])]
        assert {about["hides"] for about in abouts} == {row[1]}
        assert set(names(row[3])) == {recipe for about in abouts for recipe in about["recipes"]}


def test_the_page_of_encoders_says_what_each_is():
    told = {}
    for encoders, models, sees, released, _ in table("docs/support.md", "Encoders"):
        classes = names(models) or [None] * len(names(encoders))
        told |= {
            name: (model, sees.startswith("image"), released == "yes")
            for name, model in zip(names(encoders), classes, strict=True)
        }
    assert told == {
        name: (about["transformers"], about["modality"] == "image", about["released"])
        for name, about in FOUND["encoders"].items()
    }


def test_it_prints_readable_lines_with_every_name_and_the_reasons(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for name in (*FOUND["objectives"], *FOUND["encoders"], *FOUND["recipes"]):
        assert any(line.startswith(f"{name}  ") for line in lines), name
    clm = next(line for line in lines if line.startswith("clm  "))
    assert clm.split()[1:] == [CANNOT] * 3 + [RUNS] * 2, "no encoder of images stands beside it"
    assert "mae: MAE drops patches, but a perceptron takes all pixels: mlp" in lines


def test_the_same_as_json(capsys):
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND
    assert FOUND["objectives"]["mlm"]["likelihood"] and not FOUND["objectives"]["gan"]["likelihood"]
    assert FOUND["objectives"]["dino"]["releases"] == "teacher"
    assert not FOUND["objectives"]["attribute"]["pictures"]


def test_a_recipe_is_told_by_its_first_sentence_that_is_no_command():
    head = (
        "# python -m pretrain a\n# A thing (Doe et al. 2017, arXiv:1.2): it learns\n# to see. More of it.\n"
        "name: a\nobjective: {name: mae}\nencoder: {name: vit}\n"
    )
    assert read_head(head)["about"] == "A thing (Doe et al. 2017, arXiv:1.2): it learns to see."
    assert read_head(head.partition("name")[1] + head.partition("name")[2])["about"] == ""


def test_columns_that_do_not_fit_stand_below():
    assert stack("with_long_name") == ["with_", "long_", "name"]
    assert fit_columns(["aaaa", "bbbb", "cc_dddd"], 14) == [["aaaa", "bbbb"], ["cc_dddd"]]
