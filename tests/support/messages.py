"""Every sentence that the product can print, read from its source: ``make messages`` writes them to ``SNAPSHOT``."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests/snapshots/messages.txt"
FOLDERS = ("dispatch", "state", "job", "job/container", "settings", "adapters", "preflight", "verify")
"""Parts of the package, in reading order; its own modules come first."""

LOCAL = ("local", "local/machine", "local/programs")
"""Parts of the local cloud that do not copy the words of a real service."""

HEAD = """\
Every sentence that the product can print, in the order of its source. {…} stands for a value. Sentences are printed
with the code in front of them; with two codes the case decides, without one the caller or the place does.
The local cloud follows at the end. `make messages` writes this file.
"""
OTHER = re.compile(
    r"\s*(import|query|mutation|fragment|id|Bearer|Basic|\.\.\. on|credential\.\S+|timestamp) "
    r"|.*(\(\?:|\[\^|\\[sdwb]|\{ [\w{]|[\w)]\|[\w(-]| AND )",
    re.DOTALL,
)
"""What GraphQL, regular expressions, filters of lists and options of git look like."""
PATTERNS = {"_rule", "compile", "match", "fullmatch", "search", "sub"}
"""Functions whose first argument is a regular expression."""


def render() -> str:
    """Return the content of the snapshot."""
    package = ROOT / "vertex_launch"
    modules = [
        *sorted(package.glob("*.py")),
        *(path for folder in FOLDERS for path in sorted(package.glob(f"{folder}/*.py"))),
    ]
    assert set(modules) == set(package.rglob("*.py")), "FOLDERS lists every folder of the package"
    modules += [path for folder in LOCAL for path in sorted(ROOT.glob(f"{folder}/*.py"))]
    parts = [HEAD]
    for module in modules:
        lines = list(dict.fromkeys(_Sentences(ast.parse(module.read_text())).lines()))
        if lines:
            parts.append("\n".join([f"== {module.relative_to(ROOT)}", *lines, ""]))
    return "\n".join(parts)


class _Sentences:
    """The sentences of one module."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._settings = any(
            isinstance(node, ast.keyword) and node.arg == "use_attribute_docstrings" for node in ast.walk(tree)
        )
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def lines(self) -> Iterator[str]:
        """Return each sentence with its code in front, in the order of the source."""
        found = {}
        for node in ast.walk(self._tree):
            parent = self._parents.get(node)
            if (
                isinstance(parent, ast.JoinedStr)
                or _is_sum(parent)
                or self._is_comment(node)
                or _is_pattern(node, parent)
            ):
                continue
            text = _text(node)
            if isinstance(node, ast.expr) and text is not None and _is_sentence(text) and not self._is_part(node):
                text = text.partition(". ")[0] if isinstance(parent, ast.Expr) else text  # as problems.py prints it
                found[node.lineno, node.col_offset] = f"{self._code(node):<27} {' '.join(text.split())}"
        return (found[place] for place in sorted(found))

    def _is_comment(self, node: ast.AST) -> bool:
        """Return whether a text is a docstring that errors do not print, as they do the descriptions of settings."""
        parent = self._parents.get(node)
        if not isinstance(parent, ast.Expr):
            return False
        owner = self._parents[parent]
        described = self._settings and isinstance(owner, ast.ClassDef) and owner.body[0] is not parent
        return not described

    def _is_part(self, node: ast.AST) -> bool:
        """Return whether a text is part of an expression in an f-string, which shows it."""
        while not isinstance(node, ast.stmt | ast.FormattedValue):
            node = self._parents[node]
        return isinstance(node, ast.FormattedValue)

    def _code(self, node: ast.AST) -> str:
        """Return the code of the innermost call that a text is an argument of, or the next one that its variable is."""
        names: list[ast.Name] = []
        while not isinstance(node, ast.FunctionDef | ast.Module):
            if isinstance(node, ast.Assign):
                names = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            elif isinstance(node, ast.Call) and (code := _codes(node)):
                return code
            node = self._parents[node]
        calls = sorted((one for one in ast.walk(node) if isinstance(one, ast.Call)), key=lambda one: one.lineno)
        after = (
            call
            for name in names
            for call in calls
            if name.lineno <= call.lineno < _next_assignment(node, name) and name.id in _variables(call)
        )
        return next(filter(None, map(_codes, after)), "")


def _next_assignment(scope: ast.AST, name: ast.Name) -> float:
    """Return the line in which a variable certainly gets another value."""
    return min(
        (
            other.lineno
            for other in ast.walk(scope)
            if isinstance(other, ast.Name) and isinstance(other.ctx, ast.Store) and other.id == name.id
            if other.lineno > name.lineno and other.col_offset <= name.col_offset
        ),
        default=math.inf,
    )


def _is_sentence(text: str) -> bool:
    bare = re.sub(r"\{[^{}]*\}", "{}", text).strip()
    words = re.findall(r"[^\W\d_]{2,}", bare)
    phrase = len(words) > 1 or (any(word[0].isupper() and word[1:].islower() for word in words) and "{}" in bare)
    return " " in bare and phrase and not OTHER.match(text)


def _is_pattern(node: ast.AST, parent: ast.AST | None) -> bool:
    return (
        isinstance(parent, ast.Call) and node in parent.args[:1] and ast.unparse(parent.func).split(".")[-1] in PATTERNS
    )


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _variables(call: ast.Call) -> set[str]:
    return {argument.id for argument in _arguments(call) if isinstance(argument, ast.Name)}


def _codes(call: ast.Call) -> str:
    """Return the codes among a call's own arguments."""
    codes = []
    for node in (
        one for argument in _arguments(call) if not isinstance(argument, ast.Call) for one in ast.walk(argument)
    ):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code":
            codes.append(f"VL-{node.attr.replace('_', '-')}")
        elif isinstance(node, ast.Constant) and str(node.value).startswith(
            "VL-"
        ):  # in the bootstrap, which has no Code
            codes.append(str(node.value))
    return "/".join(dict.fromkeys(codes))


def _is_sum(node: ast.AST | None) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _text(node) is not None


def _text(node: ast.AST | None) -> str | None:
    """Return the text of a literal, an f-string or a sum of them, with expressions in braces; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or "" for value in values)
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right) if (first := _text(left)) and (second := _text(right)):
            return first + second
    return None


if __name__ == "__main__":
    SNAPSHOT.write_text(render())
