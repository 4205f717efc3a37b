"""Turn a notebook into a script."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vertex_launch.job.container.base import Failed, say, warn

MAGIC = re.compile(r"(\s*)([%!?].*|[\w., ]+=\s*[%!].*|.*\?)")
TIMED = re.compile(r"(\s*)([\w., ]+=\s*)?%time(?:it)?\s+([^-%!\s].*)")
CELL_OF_PYTHON = re.compile(r"\s*%%(time|timeit|capture|prun)\b")


def convert(notebook: Path) -> Path:
    """Write a notebook's code to a script beside it. Raises Failed.

    nbconvert turns magics into calls of IPython, which a program that Python runs does not have.
    """
    script = notebook.with_suffix(".py")
    if script.exists():
        script = Path(f"{notebook}.py")
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = f"{notebook.name} cannot be read as a notebook ({error!r}). Correct the entry point"
        raise Failed("VL-BOOT-NOTEBOOK", found) from error
    for index, text in enumerate(texts):
        try:
            compile(text, notebook.name, "exec")
        except (SyntaxError, ValueError):
            texts[index] = without_magics(text)
            try:
                compile(texts[index], notebook.name, "exec")
            except (SyntaxError, ValueError) as error:  # for example an `await` outside of functions
                found = f"code cell {index + 1} cannot run in a script ({error}). Change it in the notebook"
                warn("notebook", "VL-BOOT-NOTEBOOK", found)
    script.write_text("\n\n".join(texts) + "\n", "utf-8")
    say("notebook", f"{notebook.name} runs as {script.name}")
    return script


def without_magics(cell: str) -> str:
    """Return a cell in which lines that only IPython understands are comments, and log each."""
    lines = cell.split("\n")
    foreign = cell.lstrip().startswith("%%") and not CELL_OF_PYTHON.match(cell)
    for index, line in enumerate(lines):
        found, timed = MAGIC.fullmatch(line), TIMED.fullmatch(line)
        if timed and not foreign:
            warn("notebook", "VL-BOOT-NOTEBOOK", f"not timed: {line.strip()}")
            lines[index] = f"{timed[1]}{timed[2] or ''}{timed[3]}"
        elif line.strip() and (foreign or found):
            warn("notebook", "VL-BOOT-NOTEBOOK", f"skipped: {line.strip()}")
            lines[index] = f"{found[1] if found and not foreign else ''}pass  # {line.strip()}"
    return "\n".join(lines)
