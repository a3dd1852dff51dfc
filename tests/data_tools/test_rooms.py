"""Which room of the package imports which: downwards only."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "data_tools"
ROOMS = ["errors", "storage", "formats", "decode", "order", "dataset", "stream", "commands"]
"""From the lowest to the highest. `errors` hides what is secret in URLs, which storage knows."""
LOOSE = {
    "jobs": "formats",
    "schema": "storage",
    "tokenizer": "stream",
    "samples": "commands",
    "__main__": "commands",
    "__init__": "commands",
}
"""By a file or folder beside the rooms: in which room it would stand by what it imports."""
ALLOWED = {("errors", "storage"), ("dataset", "samples")}
"""The last is imported by the function that opens `sample:digits`."""


def find_imports(file: Path) -> set[str]:
    """What a file imports of the project: dotted names, the packages of others left out."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name for name in imported if name.split(".")[0] in ("data_tools", "pretrain", "finetune", "launch")
    }


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_a_room_imports_only_rooms_below_it_and_nothing_of_the_packages_above():
    height = {room: number for number, room in enumerate(ROOMS)}
    height |= {name: height[room] for name, room in LOOSE.items()}
    upwards = set()
    for file in PACKAGE.rglob("*.py"):
        room = room_of(file)
        for name in find_imports(file):
            package, *rest = name.split(".")
            other = rest[0] if rest and rest[0] in height else room
            wrong = height[other] > height[room] and (room, other) not in ALLOWED
            if package != "data_tools" or wrong:
                upwards.add(f"{file.relative_to(PACKAGE)}: {name}")
    assert not upwards


def test_an_order_reads_and_writes_nothing():
    """Its room knows of storage how a few values are kept, and no more."""
    used = {name for file in (PACKAGE / "order").glob("*.py") for name in find_imports(file)}
    outside = {n for n in used if not n.startswith(("data_tools.order", "data_tools.storage.handles"))}
    assert outside <= {"data_tools", "data_tools.errors", "data_tools.errors.UserError"}
