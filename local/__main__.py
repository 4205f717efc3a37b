"""Run ``python -m local up``, ``demo`` or ``chaos``; ``python -m local --help`` explains them.

Old versions of Python must be able to parse this file, because it reports that they are too old.
"""

from __future__ import annotations

import sys

_OURS = ("local", "vertex_launch")

if sys.version_info < (3, 11):  # noqa: UP036 - the versions that this excludes get here
    sys.exit(
        "python -m local: this is Python {}.{}, and the local cloud needs Python 3.11 or newer. Use the environment "
        "that `make demo` creates: .venv/bin/python -m local".format(*sys.version_info[:2])
    )
try:
    from local.programs.cli import main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in _OURS:
        raise
    sys.exit(
        f"python -m local: {sys.executable} has no package {error.name}. Install the packages with "
        "`pip install --requirement local/requirements.txt`, or use the environment that `make demo` creates: "
        ".venv/bin/python -m local"
    )

if __name__ == "__main__":
    sys.exit(main())
