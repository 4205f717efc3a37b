"""Ends with the status that it is given."""

import sys

print("this program fails, as it was asked to", file=sys.stderr)
sys.exit(int(sys.argv[1]))
