"""The forms in which a secret can stand in a text: plain, escaped for JSON, in a URL, in HTML, and in base64. Pure."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

LONGEST = 4096
"""Characters of a secret that are looked for. API keys have about 90, tokens that W&B takes instead up to 2,000."""
_CUT = 32
"""Characters of a secret that are recognized if the rest of it was cut off; a problem repeats at least 57 of a value."""


def forms(secret: str, shortest: int) -> frozenset[str]:
    """Return every form of a secret that has at least so many characters, and pieces of it in case it is cut off."""
    found: set[str] = set()
    for text in {secret[:LONGEST], secret[:LONGEST].strip()}:
        found.update(_texts(text))
        found.update(_base64s(text.encode("utf-8", "surrogatepass")))
        found.update(text[start : start + _CUT] for start in range(0, len(text) - _CUT + 1, _CUT))
    return frozenset(form for form in found if len(form) >= shortest)


def _texts(text: str) -> Iterator[str]:
    yield text
    yield html.escape(text)
    yield repr(text)[1:-1]
    escaped = text
    for _ in range(2):  # JSON, and JSON in JSON
        plain = json.dumps(escaped, ensure_ascii=False)[1:-1]
        yield plain
        yield plain.replace("/", "\\/")
        escaped = json.dumps(escaped)[1:-1]
        yield escaped
        yield re.sub("[&<>]", lambda char: f"\\u{ord(char[0]):04x}", escaped)  # as Go escapes
    data = text.encode("utf-8", "surrogatepass")
    for quoted in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), quoted)


def _base64s(data: bytes) -> Iterator[str]:
    """Return base64 of the data, of a basic-auth header with it, and what both have in common with that of any text around."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for whole in (data, b"api:" + data):
            yield from _in_url(encode(whole).decode())
        for before in range(3):
            text = encode(b"\0" * before + data).decode()
            # The first characters also hold bits of what stands before, and the last one of what follows.
            yield from _in_url(text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])


def _in_url(text: str) -> Iterator[str]:
    yield text
    yield text.rstrip("=")
    if not text.isalnum():
        yield text.replace("/", "\\/")
        yield quote(text, safe="")
        yield quote(text, safe="").replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
