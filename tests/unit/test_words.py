"""No page, message, docstring or comment uses the phrases that the style guide forbids."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "*.yaml", "docs/**/*.md", "infra/**/*.md", "infra/**/*.tf", "infra/**/*.sh", "infra/**/*.yaml")
PYTHON = ("main.py", "vertex_launch/**/*.py", "local/**/*.py", "bench/*.py")
FORBIDDEN = re.compile(
    r"\b([Nn]obody|[Ss]omebody|[Aa]nybody|[Ee]verybody|[Mm]end(s|ed|ing)?|side by side|for ever)\b|, too\b"
    r"|(?<![Tt]here )\b(is|are) no (?!longer|more)"
)
VERBS = ("Give", "Gives", "Tell", "Tells", "Say", "Says", "Note")


def test_no_forbidden_phrase() -> None:
    found = []
    for path in sorted(
        path for pattern in (*PATTERNS, *PYTHON) for path in ROOT.glob(pattern) if ".venv" not in str(path)
    ):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in FORBIDDEN.finditer(line)]
    assert found == []


def test_docstrings_begin_with_a_plain_verb() -> None:
    found = []
    for path in sorted(path for pattern in PYTHON for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                first = (ast.get_docstring(node) or "").partition(" ")[0]
                if first in VERBS:
                    found.append(f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {first}")
    assert found == []
