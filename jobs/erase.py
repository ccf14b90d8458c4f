"""Request an erasure, where one is named, and drain, as a Ray job:

    ray job submit --working-dir . -- python jobs/erase.py CONFIG [--subject ID | --records FILE | ...]

The last line is one JSON object, the drain's; the exit code is the outcome. Interrupted once the request was filed, it
is gone on with by `jobs/drain.py`. Ray keeps a job's command line in clear: where the id of a person must not stand
there, ask by `frmu erase` and submit `jobs/drain.py` alone.
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
