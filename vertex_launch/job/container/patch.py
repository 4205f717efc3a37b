"""Apply what a job recorded beside its commit: what the author's git printed for ``git diff HEAD --submodule=diff``.

The author's git configuration changes prefixes, folders, colours and quoting, and can put another program's output in place of
a diff. So the diff is read strictly: each line belongs to a change that is applied, or the job ends before its program.
"""

# ruff: noqa: PTH115 - Python 3.8 has no Path.readlink
from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
from pathlib import Path

from vertex_launch.job.container.base import Failed, differs, end_of, inside, run, say

COLOUR = re.compile(rb"\x1b\[[\d;:]*[mK]")
HEADER = re.compile(
    rb"(?:old|new|deleted file|new file) mode (?P<mode>\d+)|(?:dis)?similarity index \d+%|(?:rename|copy) (?:from|to) .+"
    rb"|index [0-9a-f]+\.\.[0-9a-f]+(?: \d+)?"
)
HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@.*")
SUBMODULE = re.compile(
    rb"Submodule .+ (?:contains (?:untracked|modified) content"
    rb"|[0-9a-f]+\.{2,3}[0-9a-f]+(?: \((?:new submodule|submodule deleted|rewind)\))?:?)"
)
QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
JUNK = re.compile(r"(?:.*/)?(?:\.DS_Store|Thumbs\.db|[^/]+\.py[cod])")  # Python and desktops write them anew
PUSH = "Commit and push the change, then create the job again"
PLAIN = (
    "Switch off diff.external, diff drivers (such as nbdime or textconv) and color.ui=always with git config, then create the "
    "job again"
)


class Part:
    """The change of one file: its ``title`` behind ``diff --git``, other headers, and its content as lines or hunks.

    A hunk is its first line in the old file and its lines, each a sign and a text. ``name_of`` chooses ``old`` and ``new``.
    """

    def __init__(self, title: bytes) -> None:
        self.title = title
        self.headers: list[bytes] = []
        self.paths: list[bytes] = []  # behind --- and +++
        self.body: list[bytes] = []
        self.hunks: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        self.old = self.new = ""

    def header(self, start: bytes) -> bytes | None:
        """Return what follows a word in the headers, None if no header begins with it."""
        return next((line[len(start) :] for line in self.headers if line.startswith(start)), None)

    @property
    def is_new(self) -> bool:
        """Whether the file did not exist."""
        return self.header(b"new file mode ") is not None

    @property
    def is_deleted(self) -> bool:
        """Whether the file does not exist any longer."""
        return self.header(b"deleted file mode ") is not None

    @property
    def is_binary(self) -> bool:
        """Whether git only says that the file differs."""
        return self.body[:1] == [b"Binary"]

    @property
    def modes(self) -> set[bytes]:
        """Return the first digits of the file's modes: 100 of a file, 120 of a symbolic link, 160 of a submodule."""
        found = {match["mode"][:3] for match in map(HEADER.fullmatch, self.headers) if match and match["mode"]}
        last = (self.header(b"index ") or b"").partition(b" ")[2]
        return found | ({last[:3]} if last else set())

    def blob(self, side: int) -> str:
        """Return the start of the hash of the old (0) or new (1) content, empty if the diff does not have it."""
        both = (self.header(b"index ") or b"..").split(b" ")[0].decode()
        found = both.split("..")[side]
        return found if found.strip("0") else ""

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Return all that the title can mean: two paths with their prefixes, each perhaps quoted."""
        first, title = QUOTED.match(self.title), self.title
        if first:
            splits = [(first[0], title[first.end() + 1 :])]
        elif title.endswith(b'"'):
            splits = [(title[: title.index(b' "')], title[title.index(b' "') + 1 :])]
        else:
            splits = [(title[: match.start()], title[match.end() :]) for match in re.finditer(rb" ", title)]
        return [(unquoted(one), unquoted(two)) for one, two in splits]

    def name(self, source: bytes, target: bytes) -> bool:
        """Set the names that the part has with these prefixes; return False if it cannot have them."""
        moved = [self.header(b"%s %s " % (word, end)) for end in (b"from", b"to") for word in (b"rename", b"copy")]
        olds, news = [one for one in moved[:2] if one], [one for one in moved[2:] if one]
        for one, two in self.pairs():
            if one.startswith(source) and two.startswith(target):
                old, new = one[len(source) :], two[len(target) :]
                fits = [unquoted(olds[0]), unquoted(news[0])] == [old, new] if olds and news else old == new
                sides = [{source + old, b"/dev/null"}, {target + new, b"/dev/null"}][: len(self.paths)]
                fits = fits and all(unquoted(path) in sides[at] for at, path in enumerate(self.paths))
                if fits and old and new and not old.startswith(b"/") and not new.startswith(b"/"):
                    self.old, self.new = os.fsdecode(old), os.fsdecode(new)
                    return True
        return False


def unquoted(name: bytes) -> bytes:
    """Return a path as it is, without quotes and the tab that git adds after a space."""
    name = name[:-1] if name.endswith(b"\t") else name
    return ast.literal_eval("b" + name.decode("ascii")) if QUOTED.fullmatch(name) else name


def quoted(name: str) -> bytes:
    """Return a path as git quotes it."""
    return b'"' + b"".join(b"\\%03o" % byte for byte in os.fsencode(name)) + b'"'


def read_patch(patch: bytes) -> list[Part]:
    """Return the parts of a diff. Raises ValueError if it has anything else."""
    lines, parts, at = patch.split(b"\n"), [], 0
    while lines and not lines[-1].strip():
        lines.pop()
    while at < len(lines):
        line, at = lines[at], at + 1
        if SUBMODULE.fullmatch(line):
            continue
        if line.startswith(b"Submodule "):
            raise Failed("VL-BOOT-PATCH", f"diff.patch lacks the content of a submodule ({os.fsdecode(line)}). {PUSH}")
        if not line.startswith(b"diff --git "):
            raise ValueError(f"line {at} is not of a git diff: {line[:80].decode(errors='replace')!r}")
        part = Part(line[11:])
        parts.append(part)
        while at < len(lines) and HEADER.fullmatch(lines[at]):
            part.headers.append(lines[at])
            at += 1
        rest = lines[at : at + 2]
        if rest and rest[0].startswith(b"Binary files ") and rest[0].endswith(b" differ"):
            part.body, at = [b"Binary"], at + 1
        elif rest and rest[0] == b"GIT binary patch":
            while at < len(lines) and not lines[at].startswith((b"diff --git ", b"Submodule ")):
                part.body.append(lines[at])
                at += 1
        elif len(rest) == 2 and rest[0].startswith(b"--- ") and rest[1].startswith(b"+++ "):
            part.paths, at = [line[4:] for line in rest], at + 2
            while at < len(lines) and HUNK.fullmatch(lines[at]):
                at = read_hunk(lines, at, part)
        if not part.body and (part.paths or not any(line[:5] != b"index" for line in part.headers)):
            raise ValueError(f"the change before line {at + 1} is incomplete")
    return parts


def read_hunk(lines: list[bytes], at: int, part: Part) -> int:
    """Add the hunk at a line to a part, and return where it ends. Raises ValueError if it is incomplete."""
    start, old, _, new = HUNK.fullmatch(lines[at]).groups()  # type: ignore[union-attr]
    lefts = [int(old or 1), int(new or 1)]
    hunk: list[tuple[bytes, bytes]] = []
    part.hunks.append((int(start) - (old != b"0"), hunk))
    part.body.append(lines[at])
    at += 1
    while any(lefts) or (at < len(lines) and lines[at].startswith(b"\\ ")):
        # W&B's client may trim empty lines at the end, and diff.suppressBlankEmpty leaves out their sign.
        line = (lines[at] if at < len(lines) else b"") or b" "
        if line.startswith(b"\\ ") and hunk:  # no newline at the end of the file
            hunk[-1] = hunk[-1][0], hunk[-1][1][:-1]
        elif line[:1] in (b" ", b"-", b"+"):
            hunk.append((line[:1], line[1:] + b"\n"))
            lefts = [lefts[0] - (line[:1] != b"+"), lefts[1] - (line[:1] != b"-")]
        if min(lefts) < 0 or line[:1] not in (b" ", b"-", b"+", b"\\"):
            raise ValueError(f"the change before line {at + 1} is incomplete")
        part.body.append(line)
        at += 1
    return at


def is_blob(place: Path, start: str) -> bool:
    """Return whether a file has the content with a hash that begins so, whatever its line ends; an empty start fits all."""
    if not start or (place.is_dir() and not place.is_symlink()):
        return True
    data = os.fsencode(os.readlink(str(place))) if place.is_symlink() else place.read_bytes()
    return any(
        new(b"blob %d\0" % len(text) + text).hexdigest().startswith(start)
        for text in (data, data.replace(b"\r\n", b"\n"))
        for new in (hashlib.sha1, hashlib.sha256)
    )


def prefixes(part: Part) -> list[tuple[bytes, bytes]]:
    """Return what the prefixes of the two paths in a title can be, the shortest first."""
    moved = part.header(b"rename from ") or part.header(b"copy from ")
    target = part.header(b"rename to ") or part.header(b"copy to ")
    found = []
    for one, two in part.pairs():
        if moved and target:
            old, new = unquoted(moved), unquoted(target)
            found += [(one[: -len(old)], two[: -len(new)])] if one.endswith(old) and two.endswith(new) else []
        else:
            ends = [(at, len(two) - len(one) + at) for at in range(len(one)) if two.endswith(one[at:])]
            found += [(one[:at], two[:end]) for at, end in ends]
    return sorted(found, key=lambda pair: len(pair[0]))


def find_names(parts: list[Part], code: Path) -> Path:
    """Set the names of all parts, and return the folder that they are relative to. Raises Failed."""

    def flaws(pair: tuple[bytes, bytes], top: Path) -> tuple[int, int]:
        """Return how many files a pair of prefixes does not fit, and of how many the content differs."""
        missing = differing = 0
        for part in parts:
            part.name(*pair)
            place = inside(top, part.old)
            exists = os.path.lexists(str(place))
            missing += exists == part.is_new and not (exists and place.is_dir())
            differing += exists and not part.is_new and not is_blob(place, part.blob(0))
        return missing, differing

    # A longer prefix could fit as well, where a folder has a file of the same name.
    pairs = [pair for pair in prefixes(parts[0]) if all(part.name(*pair) for part in parts)]
    pairs = [pair for pair in pairs if len(pair[0]) == len(pairs[0][0])]
    if not pairs:
        raise Failed("VL-BOOT-PATCH", f"the paths in diff.patch have no common prefix ({parts[0].title!r}). {PUSH}")
    tops = [code]
    if min(flaws(pair, code) for pair in pairs) > (0, 0):  # diff.relative
        known = next((part for part in parts if not part.is_new), parts[0])
        names = [Path(os.fsdecode(one)).name for one, _ in known.pairs()]
        found = {place for name in names for file in code.rglob(name) for place in file.parents}
        tops += sorted(place for place in found if code in place.parents)
    ranked = [(flaws(pair, top), index, pair, top) for index, top in enumerate(tops) for pair in pairs]
    _, _, pair, top = min(ranked, key=lambda one: one[:2])
    flaws(pair, top)
    if top != code:
        lost = f"diff.patch has only the changes in {top.relative_to(code)}, because git had diff.relative set"
        differs("patch", "VL-BOOT-PATCH", f"{lost}. Changes elsewhere are missing")
    return top


def apply_patch(patch: bytes, code: Path) -> None:
    """Apply a ``git diff`` exactly and completely, with git if the image has it. Raises Failed."""
    uncoloured, errors = COLOUR.sub(b"", patch), []
    for data in (patch, uncoloured, patch.replace(b"\r\n", b"\n"), uncoloured.replace(b"\r\n", b"\n")):
        try:
            parts = read_patch(data)
            break
        except ValueError as error:
            errors.append(error)
    else:
        raise Failed("VL-BOOT-PATCH", f"diff.patch cannot be applied: {errors[0]}. {PLAIN}")
    say("patch", f"applying diff.patch to {len(parts)} files")
    if not parts:
        return
    top = find_names(parts, code)
    wanted = list(filter(lambda part: has_content(part, top), parts))
    if shutil.which("git"):
        apply_with_git(wanted, top, code)
    else:
        apply_alone(wanted, top)
    for part in wanted:
        if not part.is_deleted and not is_result(part, inside(top, part.new)):
            found = f"{part.new} is not what the author's git had, although diff.patch fits it"
            raise Failed("VL-BOOT-PATCH", f"{found}. {PLAIN}")


def has_content(part: Part, top: Path) -> bool:
    """Return whether the content of a change has to be applied. Raises Failed if the diff does not have it."""
    if b"160" in part.modes:
        raise Failed(
            "VL-BOOT-PATCH", f"{part.old} is a submodule at another commit, which a patch does not have. {PUSH}"
        )
    if not part.is_binary:
        return True
    if part.is_deleted and is_blob(inside(top, part.old), part.blob(0)):
        inside(top, part.old).unlink()
        return False
    if JUNK.fullmatch(part.new):
        differs("patch", "", f"{part.new} is as it was committed, because diff.patch does not have its content")
        return False
    found = f"{part.new} had changed, but it is binary, and diff.patch does not have its content"
    raise Failed("VL-BOOT-PATCH", f"{found}. Commit and push it, or remove it from git, then create the job again")


def is_result(part: Part, place: Path) -> bool:
    """Return whether a patched file is what the author had; git knows the filters that .gitattributes sets."""
    if is_blob(place, part.blob(1)):
        return True
    asked = ["git", "hash-object", "--", place.name]
    return bool(shutil.which("git")) and end_of(run(asked, place.parent, {})[1]).startswith(part.blob(1))


def apply_with_git(parts: list[Part], top: Path, code: Path) -> None:
    """Apply parts with ``git apply``, all or nothing. Raises Failed."""
    lines = []
    for part in parts:
        old, new = quoted(f"a/{part.old}"), quoted(f"b/{part.new}")
        lines += [b"diff --git %s %s" % (old, new), *part.headers]
        if part.paths:
            olds, news = (b"/dev/null" if path == b"/dev/null" else None for path in part.paths)
            lines += [b"--- " + (olds or old), b"+++ " + (news or new)]
        lines += [*part.body, b""] if part.body[:1] == [b"GIT binary patch"] else part.body
    file = code.parent / "changes.patch"
    file.write_bytes(b"\n".join([*lines, b""]))
    command = ["git", "-c", "apply.ignoreWhitespace=no", "apply", "--unidiff-zero", "--whitespace=nowarn", "-p1"]
    folder = top.relative_to(code).as_posix()
    command += [] if folder == "." else [f"--directory={folder}"]
    status, output = (
        run([*command, str(file)], code, {"GIT_CEILING_DIRECTORIES": str(code.parent)}) if parts else (0, "")
    )
    file.unlink()
    error = re.search("(?:error|fatal): (.*)", output)  # with a status of 0 if a binary part is corrupt
    if status or error:
        found = f"diff.patch does not fit the commit ({error[1] if error else end_of(output)})"
        raise Failed("VL-BOOT-PATCH", f"{found}. {PUSH}")


def apply_alone(parts: list[Part], top: Path) -> None:
    """Apply parts without git: text alone. Raises Failed."""
    made: dict[Path, tuple[bytes, int]] = {}
    for part in parts:
        old, new = inside(top, part.old), inside(top, part.new)
        ups = {up for place in (old, new) for up in (place, *place.parents) if top in up.parents}
        if part.modes - {b"100"} or part.body[:1] == [b"GIT binary patch"] or any(up.is_symlink() for up in ups):
            found = f"{part.new} is a symbolic link, behind one, or binary, and the image has no git"
            raise Failed("VL-BOOT-PATCH", f"{found}. Use an image with git, or commit and push the change")
        try:
            data, mode = b"".join(patched(part, old)), part.header(b"new file mode 100") or part.header(b"new mode 100")
            if not part.is_deleted:
                made[new] = data, int(mode, 8) if mode else old.stat().st_mode & 0o777
        except (ValueError, LookupError, OSError) as error:
            raise Failed(
                "VL-BOOT-PATCH", f"diff.patch does not fit {part.old} ({error}), and the image has no git. {PUSH}"
            ) from error
    for part in parts:
        if part.is_deleted or part.header(b"rename from ") is not None:
            inside(top, part.old).unlink()
    for place, (data, permissions) in made.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(permissions)


def patched(part: Part, place: Path) -> list[bytes]:
    """Return the new lines of a file. Raises ValueError, LookupError, OSError if the change does not fit the old ones."""
    old = [] if part.is_new else re.findall(rb"[^\n]*\n|[^\n]+", place.read_bytes())
    is_windows = bool(old) and all(line.endswith(b"\r\n") for line in old)  # .gitattributes can say so
    new: list[bytes] = []
    at = 0
    for begin, hunk in part.hunks:
        new += old[at:begin]
        at = begin
        for sign, text in hunk:
            if is_windows and text.endswith(b"\n") and not text.endswith(b"\r\n"):
                text = text[:-1] + b"\r\n"
            if sign in b" -":
                if old[at] != text:
                    raise ValueError(f"line {at + 1} differs")
                at += 1
            if sign in b" +":
                new.append(text)
    return new + old[at:]
