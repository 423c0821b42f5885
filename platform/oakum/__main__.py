import sys

from oakum.cli import main

sys.exit(main())
