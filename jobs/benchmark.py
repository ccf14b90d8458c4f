"""Run a benchmark as a Ray job:

    ray job submit --working-dir . -- python jobs/benchmark.py drain --clients 100 --repeats 9

The arguments are those of `frmu bench`. The last line is one JSON object; the exit code is the outcome.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:], "--json"])
