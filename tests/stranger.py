"""Somebody who has `transformers` and nothing of ours, and opens what we have released."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# A stranger's interpreter: no environment, and our packages cannot be imported at all. It runs one piece of code after
# the other, for importing transformers takes the longest.
STRANGER = """
import contextlib, io, json, os, sys
OURS = {"pretrain", "finetune", "data_tools", "launch"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ImportError(name + " is not for strangers")
sys.meta_path.insert(0, Refuse())
for line in sys.stdin:
    code, folder, *arguments = json.loads(line)
    os.chdir(folder)
    sys.argv = ["", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "__main__", "sys": sys})
    assert not {m.split(".")[0] for m in sys.modules} & OURS
    print(json.dumps(out.getvalue()), flush=True)
"""


@pytest.fixture(scope="module")
def run_as_stranger():
    """Runs code in a folder, with arguments: what it printed."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", STRANGER], cwd="/", text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as stranger:  # fmt: skip

        def run_code(code, folder, *arguments):
            stranger.stdin.write(json.dumps([code, *map(str, (folder, *arguments))]) + "\n")
            stranger.stdin.flush()
            printed = stranger.stdout.readline()
            assert printed, stranger.stderr.read()[-2000:]
            return json.loads(printed)

        yield run_code
        stranger.stdin.close()
