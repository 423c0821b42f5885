"""Entry point for `ray job submit`: `python jobs/run.py EXPERIMENT.yaml [OPTIONS]` is `oakum run` on the cluster."""

import sys

from oakum.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
