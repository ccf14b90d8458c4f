"""Prove the state again, or one receipt, as a Ray job:

    ray job submit --working-dir . -- python jobs/verify.py CONFIG [RECEIPT] [--level L3]

The last line is one JSON object; the exit code is the outcome: 0 proven, 1 not.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:], "--json"])
