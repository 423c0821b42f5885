"""Entry point for `ray job submit`: `python jobs/report.py EXPERIMENT` is `oakum report` on the cluster's head."""

import sys

from oakum.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
