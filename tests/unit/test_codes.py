"""Every code has its entry in the troubleshooting page, every entry has its code, and every code is used."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from vertex_launch.codes import Code
from vertex_launch.job import boot

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vertex_launch"
PAGE = ROOT / "docs/troubleshooting.md"


def entries() -> dict[str, str]:
    """Return the page's entries: code -> text below its heading."""
    parts = re.split(r"^### (\S+)$", PAGE.read_text(), flags=re.MULTILINE)
    headings = parts[1::2]
    assert [code for code, count in Counter(headings).items() if count > 1] == []
    return {code: text.split("\n## ")[0].strip() for code, text in zip(headings, parts[2::2], strict=True)}


def used() -> set[str]:
    """Return the members of ``Code`` that the package names."""
    names = {code.name for code in Code if code in boot.text()}  # it runs in containers, without Code
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code":
                names.add(node.attr)
    return names


def test_every_code_has_an_entry_and_every_entry_has_a_code() -> None:
    assert set(entries()) == {code.value for code in Code}


def test_every_entry_says_what_a_code_means_and_what_to_do() -> None:
    assert [code for code, text in entries().items() if len(text.split()) < 8] == []


def test_every_code_is_used() -> None:
    assert {code.name for code in Code} - used() == set()
