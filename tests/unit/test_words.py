"""No page, message, docstring or comment uses the phrases that the style guide forbids, or needs a long breath."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "*.yaml", "docs/**/*.md", "infra/**/*.md", "infra/**/*.tf", "infra/**/*.sh", "infra/**/*.yaml")
PYTHON = ("main.py", "vertex_launch/**/*.py", "local/**/*.py", "bench/*.py")
FORBIDDEN = re.compile(
    r"\b([Nn]obody|[Ss]omebody|[Aa]nybody|[Ee]verybody|[Mm]end(s|ed|ing)?|side by side|for ever)\b|, too\b"
    r"|\b(is|are|was|were|been) (told|said)\b|\b[Tt]ells?\b|\bof which\b"
    r"|(?<![Tt]here )\b(is|are) no (?!longer|more)"
)
VERBS = ("Give", "Gives", "Tell", "Tells", "Say", "Says", "Note")
LONGEST = 25
"""Words of a sentence."""
PROSE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**/*.md",
    "infra/README.md",
    "vertex_launch/**/*.py",
)


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


def test_no_sentence_is_long() -> None:
    found = []
    for path in sorted(path for pattern in PROSE for path in ROOT.glob(pattern)):
        for paragraph in _paragraphs(path):
            for sentence in re.split(r"(?<=[.?!])\s+|(?<=:)\n", re.sub(r"\]\([^)]*\)", "]", paragraph)):
                if len(sentence.split()) > LONGEST:
                    found.append(f"{path.relative_to(ROOT)}: {' '.join(sentence.split())}")
    assert found == []


def _paragraphs(path: Path) -> Iterator[str]:
    """Yield paragraphs and list items, without tables and examples."""
    texts = [path.read_text()]
    if path.suffix == ".py":
        nodes = (node for node in ast.walk(ast.parse(texts[0])))
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    for text in texts:
        plain = re.sub(r"(?ms)^ *```.*?^ *```$|^\|.*?$|::\n\n.*?\n\n", "\n\n", text)
        yield from re.split(r"\n\s*\n|\n(?=[-*#] |\d+\. )", plain)
