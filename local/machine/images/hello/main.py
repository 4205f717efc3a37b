"""Greets, and says which variables its environment has (names only, for values may be secret)."""

import os
import sys

print("hello", *sys.argv[1:])
print("environment:", *sorted(os.environ))
