"""Honour what is pending as a Ray job: `ray job submit --working-dir . -- python jobs/drain.py CONFIG [--now]`.

A drain that was stopped or killed, anywhere, is gone on with by the next. The last line is one JSON object; the exit
code is the outcome: 0 where every receipt is proven, 1 where not.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    main(["drain", *sys.argv[1:], "--json"])
