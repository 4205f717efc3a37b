"""The one reader of JSON from outside."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.numbers import examples
from vertex_launch import json_reader
from vertex_launch.json_reader import Unreadable, parts, read

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=examples(1000), deadline=None)
@given(JSON)
def test_what_is_json_is_read_as_python_reads_it(value: Any) -> None:
    assert read(json.dumps(value)) == value


REFUSED = {
    b"": "empty",
    b" \n": "empty",
    b'{"a": [1': "cut off",
    b'{"a": "tex': "cut off",
    b"<!DOCTYPE html><p>": "HTML",
    b'{"a": 1} {"b": 2}': "after its end",
    b"[" * 1200 + b"]" * 1200: "(DEEPEST)",
    b"9" * 5000: "(MOST_DIGITS)",
    b"[" + b"9" * 301 + b"]": "(MOST_DIGITS)",
    b"1e999": "too large",
    b"[-1E400]": "too large",
    b"NaN": "not JSON",
    b'{"a": -Infinity}': "not JSON",
    b'"\xff"': "UTF-8",
    b'"\xed\xa0\x80"': "UTF-8",
    b'"\\ud800"': "surrogate",
    b'"\\udc00"': "surrogate",
    b"{'a': 1}": "not JSON in line 1",
    b"{\n\n}}": "after its end",
    b"[" + b"1," * 400_000 + b"1]": "(MOST_ANSWER_VALUES)",
    b'"' + b"x" * 2**23 + b'"': "(LARGEST_ANSWER)",
}


@pytest.mark.parametrize(("text", "found"), REFUSED.items(), ids=[str(i) for i in range(len(REFUSED))])
def test_a_refusal_says_what_is_wrong_and_quotes_nothing(text: bytes, found: str) -> None:
    with pytest.raises(Unreadable) as error:
        read(text)
    assert found in error.value.found
    assert error.value.__context__ is None, "a traceback would repeat the text"
    assert "EOF" not in error.value.found
    assert "sys.set" not in error.value.found
    assert "codec" not in error.value.found
    assert b"xxx" not in error.value.found.encode()


@pytest.mark.parametrize("text", ["{{" * 200_000, "[," * 300_000, '\\"{' * 200_000, ",\n" * 400_000])
def test_brackets_and_commas_in_a_text_are_no_values(text: str) -> None:
    assert read(json.dumps({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"a": "' + b'\\"' * 100_000 + b"," * 500_000, "is cut off"),
        (b'{"a": "' + b'\\"' * 100_000 + b"," * 500_000 + b"\\", "is cut off"),
        (b'["' + b'"a",' * 2_000_000, "(MOST_ANSWER_VALUES)"),
        (b"[" + b'"a",' * 2_000_000 + b"1]", "(MOST_ANSWER_VALUES)"),
        (b"[" + b'"{,",' * 500_000 + b"1]", "(MOST_ANSWER_VALUES)"),
        (b'{"x": "{{{{", "a": [' + b"{}," * 400_000 + b"1]}", "(MOST_ANSWER_VALUES)"),
    ],
    ids=range(6),
)
def test_values_are_counted_in_linear_time(text: bytes, found: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable) as error:
        read(text)
    assert found in error.value.found
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["\ud800", '"\udc00"'])
def test_half_a_surrogate_pair_in_a_text(text: str) -> None:
    with pytest.raises(Unreadable, match="surrogate"):
        read(text)


def test_digits_in_a_text_are_no_number() -> None:
    value = {"digest": "sha256:1e999" + "9" * 5000, "n": 10**299, "f": 1e300, "deep": 0}
    assert read(json.dumps(value)) == value


def test_which_texts_may_be_incomplete() -> None:
    for text, cut in {b'{"a': True, b"9" * 400: False, b"[" * 400: False, b"<p>": False}.items():
        with pytest.raises(Unreadable) as error:
            read(text)
        assert error.value.cut_off is cut


@settings(max_examples=examples(1000), deadline=None)
@given(st.dictionaries(st.text(), st.dictionaries(st.text(), JSON, max_size=3), max_size=3))
def test_the_parts_of_an_object(value: dict[str, dict[str, Any]]) -> None:
    found = parts(json.dumps(value).encode(), 2)
    inner = {json.dumps(k)[1:-1]: {json.dumps(n)[1:-1]: one for n, one in v.items()} for k, v in value.items()}
    expected: dict[tuple[str, ...], Any] = {(k,): value[k_] for k, k_ in zip(inner, value, strict=True)}
    expected |= {(k, n): one for k, v in inner.items() for n, one in v.items()}
    assert {keys: read(text) for keys, text in found.items()} == expected


@settings(max_examples=examples(1000), deadline=None)
@given(JSON, st.integers(0, 10_000))
@example(None, len('{"data": {"f0": {"id": "mine", "spec"'))
def test_parts_of_a_text_that_is_cut_off_come_from_its_structure_alone(spec: Any, at: int) -> None:
    """A text inside of the value that looks like JSON never becomes a part."""
    forged = json.dumps({"f9": {"id": "forged"}})
    whole = json.dumps(
        {"data": {"f0": {"id": "mine", "spec": [spec, forged, '"}},' + forged[1:]]}, "f1": {"id": "two"}}}
    )
    found = parts(whole.encode()[: at % (len(whole) + 1)], 3)
    assert set(found) <= {(), *parts(whole.encode(), 3)}
    assert b'"mine"'.startswith(found.get(("data", "f0", "id"), b""))
    assert all(keys[:2] != ("data", "f9") for keys in found)


@pytest.mark.parametrize("unit", [b"[", b'"a":', b"{}", b'"', b'\\"', b"9", b"[9,", b"1e9,"])
def test_time_is_linear(unit: bytes) -> None:
    text = b'{"data":{"f0":' + unit * (1_000_000 // len(unit))
    began = time.process_time()
    parts(text, 3)
    with pytest.raises(Unreadable):
        read(text)
    assert time.process_time() - began < 5


def test_an_object() -> None:
    assert json_reader.read_object(b'{"a": 1}') == {"a": 1}
    with pytest.raises(Unreadable, match="not a JSON object"):
        json_reader.read_object(b"[]")
