"""Entry point for `ray job submit`: `python jobs/audit.py OPTIONS` is `oakum audit` on the cluster's head."""

import sys

from oakum.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
