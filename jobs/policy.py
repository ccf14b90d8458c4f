"""Train the policy as a Ray job: `ray job submit --working-dir . -- python jobs/policy.py CONFIG [--iterations N]`.

A job that was killed goes on, when it is submitted again, where it was. The last line is one JSON object; the exit
code is the outcome.
"""

import sys

from frmu.cli import main

if __name__ == "__main__":
    main(["policy", "train", *sys.argv[1:], "--json"])
