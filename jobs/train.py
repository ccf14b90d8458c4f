"""Train as a Ray job: `ray job submit --working-dir . -- python jobs/train.py CONFIG`.

The last line is one JSON object; the exit code is the outcome.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:], "--json"])
