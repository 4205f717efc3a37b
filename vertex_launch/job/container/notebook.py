"""Turn a notebook into a script: its code cells, with what only IPython understands as comments.

nbconvert turns magics into calls of IPython, which a program that Python runs does not have. W&B's agent removes lines that
begin with ``!``, even inside of text. Here a cell that is ordinary Python is never changed, and in others only commands are.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from vertex_launch.job.container.base import Failed, differs, say

# What Python takes as a whole, brackets, ends of lines, and the one place within a line where a command may begin: after `=`.
TOKEN = re.compile(
    r"[rbfuRBFU]*(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^\\\n'])*'|\"(?:\\.|[^\\\n\"])*\")"
    r"|(?P<skip>#[^\n]*|\\\n|[ \t])|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<end>\n)"
    r"|(?P<set>(?<![=!<>:+\-*/%&|^@])=(?!=)[ \t]*(?=[!%]))|\w+|.",
    re.DOTALL,
)
COMMAND = re.compile(r"(?:[^\\\n]|\\\n|\\.)*")  # to the end of its line, with continuation lines
START = re.compile(r"[ \t]*(?=[%!?,;/])")
TIMED = re.compile(r"%time(?:it)?[ \t]+([^-%!\s][\s\S]*)")
CELL = re.compile(r"\s*%%(\w+)[ \t]*(.*)\n?")
OF_PYTHON = ("time", "timeit", "capture", "prun")


def convert(notebook: Path) -> Path:
    """Write a notebook's code to a script beside it. Raises Failed."""
    script = notebook.with_suffix(".py")
    if script.exists():
        script = Path(f"{notebook}.py")
    try:
        cells = json.loads(notebook.read_text("utf-8-sig"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = f"{notebook.name} cannot be read as a notebook ({error!r}). Correct the entry point"
        raise Failed("VL-BOOT-NOTEBOOK", found) from error
    futures: list[str] = []
    for index, text in enumerate(texts):
        if flaw_of(text, awaiting=True):
            texts[index] = without_magics(text)
        flaw = flaw_of(texts[index])
        if flaw:  # for example an `await` outside of functions
            found = f"code cell {index + 1} cannot run in a script ({flaw}). Change it in the notebook"
            differs("notebook", "VL-BOOT-NOTEBOOK", found)
        else:
            texts[index] = without_futures(texts[index], futures)
    script.write_text("\n\n".join([*dict.fromkeys(futures), *texts]) + "\n", "utf-8")
    say("notebook", f"{notebook.name} runs as {script.name}")
    return script


def flaw_of(text: str, awaiting: bool = False) -> Exception | None:
    """Return why Python cannot compile a cell; ``awaiting`` permits what only notebooks await."""
    try:
        compile(text, "cell", "exec", getattr(ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0) if awaiting else 0, True)
    except (SyntaxError, ValueError) as error:
        return error
    return None


def without_futures(text: str, futures: list[str]) -> str:
    """Move the imports that a script may have at its beginning alone to ``futures``."""
    lines = text.split("\n")
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__" and ";" not in lines[node.lineno - 1]:
            futures.append(f"from __future__ import {', '.join(name.name for name in node.names)}")
            for at in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[at] = ""
    return "\n".join(lines)


def without_magics(text: str) -> str:
    """Return a cell in which commands that only IPython understands are comments, and log each."""
    text = text.replace("\r\n", "\n")
    indent = re.match(r"[ \t]*", text)
    if indent and indent[0]:  # IPython does the same
        text = re.sub(f"^{indent[0]}", "", text, flags=re.MULTILINE)
    cell = CELL.match(text)
    if cell and cell[1] in ("writefile", "file"):
        append, name = re.match(r"(-a\s+|--append\s+)?[\"']?(.*?)[\"']?\s*\Z", cell[2]).groups()  # type: ignore[union-attr]
        return f"with open({name!r}, {'a' if append else 'w'!r}) as _:\n    _.write({text[cell.end() :]!r})"
    if cell and cell[1] not in OF_PYTHON:
        return comment("", text.strip("\n"))
    if cell:
        text = comment("", cell[0].strip()) + "\n" + text[cell.end() :]
    return text if flaw_of(text, awaiting=True) is None else without_commands(text)


def without_commands(text: str) -> str:
    """Return code in which each command is a comment. Strings, comments and what follows an operator are not commands."""
    done: list[str] = []
    line: list[str] = []  # the logical line that is read
    at = depth = 0
    asks = False
    while at <= len(text):
        token = TOKEN.match(text, at)
        kind = token.lastgroup if token else "end"
        start = START.match(text, at) if not line and depth == 0 else None
        if start or (kind == "set" and depth == 0):
            begin = start.end() if start else token.end()  # type: ignore[union-attr]
            before = "".join(line) + text[at:begin]
            end = COMMAND.match(text, begin).end()  # type: ignore[union-attr]
            command, line, at = text[begin:end], [], end
            timed = TIMED.fullmatch(command)
            if timed:
                differs("notebook", "", f"not timed: {' '.join((before + command).split())}")
            done.append(before + timed[1] if timed else comment(before, command))
            continue
        word = token[0] if token else ""
        if kind == "end" and depth == 0:
            whole = "".join(line)
            done += [comment(whole[: len(whole) - len(whole.lstrip())], whole.strip()) if asks else whole, word]
            line, asks = [], False
        else:
            depth = max(0, depth + (kind == "open") - (kind == "close"))
            line.append(word)
            asks = word == "?" or (asks and kind == "skip")
        at = token.end() if token else at + 1
    return "".join(done + line)


def comment(before: str, command: str) -> str:
    """Return a statement that does nothing in place of a command and the words before it, and log them."""
    indent = before[: len(before) - len(before.lstrip())]
    words = f"{before.strip()} {command.strip()}".strip()
    first, *others = words.splitlines()
    differs("notebook", "VL-BOOT-NOTEBOOK", f"skipped: {first}{f' and {len(others)} lines' if others else ''}")
    return f"{indent}pass  # " + words.replace("\n", f"\n{indent}# ")
