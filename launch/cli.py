"""`masquerade COMMAND …`: one name for the four packages; the same code as `python -m <package>`."""

from __future__ import annotations

import importlib
import sys

from data_tools.errors import UserError, nearest, run_cli

COMMANDS = {
    "data": ("data_tools", "raw files → shards, and tools to look at them"),
    "pretrain": ("pretrain", "pretrain an encoder as a recipe says; release it; report on it"),
    "finetune": ("finetune", "teach a pretrained encoder a task from few labels"),
    "launch": ("launch", "start jobs on this machine, as many processes as wanted"),
    "demo": ("launch", "watch an encoder learn from unlabelled digits, then beat one trained from scratch"),
}


def main(argv: list[str] | None = None) -> int:
    """Hand the arguments to the package that the first one names; return its exit status."""
    return run_cli(lambda: hand_over(sys.argv[1:] if argv is None else argv))


def hand_over(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        known = list(COMMANDS)
        raise UserError(f"{command!r}: no such command;{nearest(command, known)} known: {', '.join(known)}")
    if command == "demo":
        rest = ["local", "demo", *rest]
    package = importlib.import_module(f"{COMMANDS[command][0]}.__main__")
    return int(package.main(rest))


def usage() -> str:
    lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: masquerade COMMAND …",
            "",
            "Hide part of the data, pretrain encoders to see it, fine-tune them on few labels, release them.",
            "",
            *lines,
            "",
            "Each command has --help. Example:  masquerade pretrain mae_digits",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
