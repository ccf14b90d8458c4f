"""Request an erasure, where one is named, and drain, as a Ray job:

    ray job submit --working-dir . -- python jobs/erase.py CONFIG [--subject ID | --records FILE | ...]

The last line is one JSON object, the drain's; the exit code is the outcome.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    config, *request = sys.argv[1:] or ["--help"]
    if request:
        try:
            main(["erase", config, *request, "--json"])
        except SystemExit as done:
            if done.code:
                raise
    main(["drain", config, "--json"])
