"""Apply the changes that a job recorded beside its commit."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from vertex_launch.job.container.base import Failed, inside, say, warn

LINE = re.compile(rb"[^\n]*\n|[^\n]+")


def apply_patch(patch: bytes, code: Path) -> None:
    """Apply a ``git diff`` exactly, without git or patch, because a slim image has neither. Raises Failed."""
    parts = re.split(rb"^(?=diff --git )", patch + b"\n", flags=re.MULTILINE)[1:]
    say("patch", f"applying diff.patch to {len(parts)} files")
    for part in parts:
        head, *hunks = re.split(rb"^(?=@@ )", part, flags=re.MULTILINE)
        title = os.fsdecode(head.splitlines()[0])
        if b"\nBinary files " in head:
            warn("patch", "VL-BOOT-PATCH", f"{title}: skipped, because a patch does not contain binary files")
            continue
        try:
            patch_file(title, head, hunks, code)
        except (ValueError, LookupError, OSError) as error:
            remedy = "The patch does not fit the commit. Create the job again"
            raise Failed("VL-BOOT-PATCH", f"{title}: {error}. {remedy}") from error


def patch_file(title: str, head: bytes, hunks: list[bytes], code: Path) -> None:
    """Apply the part of a ``git diff`` for one file. Raises ValueError, LookupError, OSError, Failed."""
    links = "symbolic links and submodules cannot be patched. Commit and push the change, then create the job again"

    def path(sign: bytes, side: bytes, word: bytes) -> Path:
        """Return the path in one of the headers; if only a mode changes or a file is empty, only the title has it."""
        patterns = rb'^%s ("?)%s/(.*?)\1\t?\n' % (sign, side), rb'^(?:rename|copy) %s ("?)(.*)\1\n' % word
        for pattern in (*patterns, rb'^diff --git ("?)a/(.*)\1 \1b/\2\1\n'):
            found = re.search(pattern, head, re.MULTILINE)
            if found:
                name = ast.literal_eval(f'b"{found[2].decode()}"') if found[1] else found[2]
                place = inside(code, os.fsdecode(name))
                if any(part.is_symlink() for part in (place, *place.parents) if code in part.parents):
                    raise Failed("VL-BOOT-PATCH", f"{title}: it is a symbolic link or behind one, but {links}")
                return place
        raise ValueError("it does not name a file")

    if re.search(rb"^GIT binary|^index .* 1[26]0000|mode 1[26]0000", head, re.MULTILINE):
        raise Failed("VL-BOOT-PATCH", f"{title}: binary files, {links}")
    source, target = path(b"-{3}", b"a", b"from"), path(b"[+]{3}", b"b", b"to")
    old = [] if b"\nnew file" in head else LINE.findall(source.read_bytes())
    new, at = [], 0
    for hunk in hunks:
        range_of, *lines = LINE.findall(re.sub(rb"\n\\ [^\n]*", b"\0", hunk))  # "\ No newline at end of file"
        start, count = re.findall(rb"-(\d+)(?:,(\d+))?", range_of)[0]
        begin = int(start) - (count != b"0")
        new += old[at:begin]
        at = begin
        for line in lines:
            sign, text = line[:1], line[1:].replace(b"\0\n", b"")
            if sign in b" -":
                if old[at] != text:
                    raise ValueError(f"line {at + 1} differs from the patch")
                at += 1
            if sign in b" +":
                new.append(text)
    if b"\nrename from" in head or b"\ndeleted file" in head:
        source.unlink()
    if b"\ndeleted file" not in head:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(new + old[at:]))
        mode = re.search(rb"^new (?:file )?mode 100(\d+)", head, re.MULTILINE)
        if mode:
            target.chmod(int(mode[1], 8))
