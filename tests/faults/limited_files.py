"""`pretrain` for which no file grows beyond so many bytes: the system refuses what goes beyond.

Example: python -m tests.faults.limited_files 60000 mae_digits train.steps=4
"""

from __future__ import annotations

import resource
import sys

from pretrain.__main__ import main

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    sys.exit(main(sys.argv[2:]))
