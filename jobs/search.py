"""Entry point for `ray job submit`: `python jobs/search.py EXPERIMENT.yaml SPACE.yaml [OPTIONS]` is `oakum search`."""

import sys

from oakum.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
