"""Print the arguments and the names of the environment variables. Their values may be secret."""

import os
import sys

print("hello", *sys.argv[1:])
print("environment:", *sorted(os.environ))
