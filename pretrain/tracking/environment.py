"""Where a run ran: versions, hardware, command line; never a secret, never the machine's name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from data_tools.storage.urls import redact_urls

PACKAGES = ("masquerade", "torch", "transformers", "tokenizers", "safetensors", "webdataset", "numpy", "pillow",
            "wandb", "pydantic", "deepspeed")  # fmt: skip
HIDDEN = "[redacted]"

SECRET_WORDS = {
    "key",
    "apikey",
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
    "authorization",
    "cookie",
}
# Special tokens of a vocabulary are settings, not secrets.
HARMLESS = re.compile(r"(mask|pad|unk|cls|sep|bos|eos|decoder_start|special)_?tokens?", re.IGNORECASE)
ASSIGNMENT = re.compile(r"(?P<name>-{0,2}[\w.-]+)(?P<equals>=)(?P<value>.+)", re.DOTALL)
# Secrets known by their form: Hugging Face, GitHub, AWS, OpenAI-like, W&B keys, bearer tokens.
SECRET_FORMS = re.compile(
    r"hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,}|wandb_v1_\w{10,}"
    r"|(?<=Bearer )\S+|(?<=Basic )[\w+/=]{8,}"
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a key of a config or environment names a secret: `WANDB_API_KEY`, `hfToken`, `db.password`."""
    if HARMLESS.fullmatch(name.rpartition(".")[2]):
        return False
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower() in SECRET_WORDS for word in words)


def redact(value: Any, name: str = "", secrets: list[str] | None = None) -> Any:
    """A copy with the values of secret keys, and everything that looks like a secret, replaced by `[redacted]`.

    Numbers and switches stay: `num_key_value_heads: 4` is no secret. A password is hidden whatever its type.

    Args:
        secrets: what `own_secrets` has found, where somebody has asked it already; so has `redact_text`.
    """
    secrets = own_secrets() if secrets is None else secrets
    if isinstance(value, Mapping):
        # A key may be a URL: that of a data set, beside its weight.
        return {
            redact_text(str(key), secrets): redact(item, str(key), secrets) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item, name, secrets) for item in value]
    if is_secret_name(name) and hideable(value, name):
        return HIDDEN
    return redact_text(value, secrets) if isinstance(value, str) else value


def hideable(value: Any, name: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return re.search("passw|secret", name, re.IGNORECASE) is not None
    return isinstance(value, (str, bytes)) and len(value) > 0


def own_secrets() -> list[str]:
    """Values of this process's secret environment variables, but for short ones, which ordinary words may hold."""
    return [value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= 8]


def redact_text(text: str, secrets: list[str] | None = None) -> str:
    """Free text without this process's secrets and known forms of secrets, URLs without user, password and query."""
    for secret in own_secrets() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return SECRET_FORMS.sub(HIDDEN, redact_urls(text))


def redact_command(arguments: list[str]) -> list[str]:
    """A command line without secrets: neither `--token=x`, `hub.token=x` nor `--token x`."""
    clean, previous = [], ""
    for argument in arguments:
        match = ASSIGNMENT.fullmatch(argument)
        if match:
            clean.append(f"{match['name']}={redact(match['value'], match['name'])}")
        elif previous.startswith("-") and is_secret_name(previous):
            clean.append(HIDDEN)
        else:
            clean.append(redact_text(argument))
        previous = "" if match else argument
    return clean


def describe_environment() -> dict[str, Any]:
    """What is needed to understand or repeat a run, as JSON can hold it."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": installed_versions(),
        "cpu": {
            "name": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        },
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": gpus(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "processes_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "git": git_state(Path(__file__).resolve().parents[2]),
        "command": redact_command(command_line()),
    }


@cache
def installed_versions() -> dict[str, str]:
    """Of the packages that a run depends on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in found]


def git_state(checkout: Path) -> dict[str, Any] | None:
    """The commit that the code stands at and whether it has changes; None where it is not a checkout of its own."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie in somebody else's repository: its commit would say nothing about us.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> list[str]:
    """As typed; a script's folder is left out, and `python -m package` reads as that."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
