"""Exit with the status in the first argument."""

import sys

print("this program fails on purpose", file=sys.stderr)
sys.exit(int(sys.argv[1]))
