"""`python -m vertex_launch`: the preflight."""

import sys

from vertex_launch.preflight.cli import main

if __name__ == "__main__":
    sys.exit(main())
