"""What the pages promise of each other: every room has one, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = [
    folder.name for folder in sorted((ROOT / "pretrain").iterdir()) if (folder / "__init__.py").is_file()
]


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links may name after `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_room_is_told_on_a_page_and_no_other_is_named():
    rows = [line for line in prose(ROOT / "docs" / "README.md").splitlines() if line.startswith("| [")]
    told = [room for row in rows for room in re.findall(r"`(\w+)`", row.split("|")[3])]
    assert sorted(told) == ROOMS


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_an_index_leads_to_every_page(index):
    folder = (ROOT / index).parent
    linked = {(folder / link.partition("#")[0]).resolve() for link in LINK.findall(prose(ROOT / index))}
    assert {page for page in PAGES if page.name != "README.md"} <= linked
