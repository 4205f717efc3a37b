"""The body of an HTTP answer, bounded in size while it arrives and while it is unpacked, and in time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from vertex_launch.json_reader import Unreadable
from vertex_launch.limits import LARGEST_ANSWER

_CHUNK = 2**16
_GZIP_OR_ZLIB = 47


def body_of(
    response: requests.Response, until: float, clock: Callable[[], float], most: int = LARGEST_ANSWER
) -> bytes | Unreadable:
    """Return the body of a response that was asked for with ``stream``, or why it cannot be unpacked.

    It has at most ``most`` bytes and one more, which shows that there are more. Raises RequestException, also after ``until``.
    """
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("identity", "", "gzip", "x-gzip", "deflate"):
        return Unreadable("is packed in another way than gzip")
    unpack = zlib.decompressobj(_GZIP_OR_ZLIB) if packed not in ("identity", "") else None
    content = bytearray()
    try:
        for chunk in _chunks(response, until, clock):
            content += unpack.decompress(chunk, most + 1 - len(content)) if unpack else chunk
            if len(content) > most:
                break
    except zlib.error:
        return Unreadable("cannot be unpacked")
    return bytes(content[: most + 1])


def _chunks(response: requests.Response, until: float, clock: Callable[[], float]) -> Iterator[bytes]:
    """Return what arrives, piece by piece, as it was sent. A server that sends a byte from time to time runs out of time."""
    try:
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            yield chunk
            if clock() > until:
                raise requests.ReadTimeout("the answer takes too long")
    except ReadTimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.exceptions.ChunkedEncodingError(error) from error
