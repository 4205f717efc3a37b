"""Logs for Cloud Logging, and the redaction of keys."""

from __future__ import annotations

import base64
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch import log

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def redact() -> log.Redactor:
    redactor = log.Redactor()
    redactor.add(KEY)
    return redactor


def test_a_record_becomes_one_line_of_json(redact: log.Redactor, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(redact, project="p")
    token = log.trace.set("t")
    try:
        log.LOGGER.warning("two\nlines with %s", KEY, extra={"item": KEY, "queue": "gpu"})
    finally:
        log.trace.reset(token)
    (line,) = capsys.readouterr().out.splitlines()
    entry = json.loads(line)
    assert entry.pop("time")
    assert entry == {
        "severity": "WARNING",
        "message": "two\nlines with <redacted>",
        "logging.googleapis.com/trace": "projects/p/traces/t",
        "item": "<redacted>",
        "queue": "gpu",
    }


def test_a_traceback_is_redacted_too(redact: log.Redactor, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(redact)
    try:
        raise ValueError(KEY)
    except ValueError:
        log.LOGGER.exception("oops")
    out = capsys.readouterr().out
    assert KEY not in out
    assert "ValueError: <redacted>" in json.loads(out)["message"]


def test_debug_lines_are_off_unless_asked_for(redact: log.Redactor, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(redact)
    log.LOGGER.debug("quiet")
    log.configure(redact, debug=True)
    log.LOGGER.debug("loud")
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["loud"]


def test_the_key_in_a_basic_auth_header_is_hidden(redact: log.Redactor) -> None:
    header = base64.b64encode(f"api:{KEY}".encode()).decode()
    assert redact(f"Authorization: Basic {header}") == "Authorization: Basic <redacted>"


def test_short_texts_are_no_keys(redact: log.Redactor) -> None:
    redact.add("a")
    redact.add("")
    assert redact("a banana") == "a banana"


def test_it_remembers_a_bounded_number_of_keys(redact: log.Redactor) -> None:
    for i in range(log.Redactor.MOST):
        redact.add(f"key-number-{i}")
    assert redact(KEY) == KEY, "the oldest"
    assert redact("key-number-1") == "<redacted>"


trees = st.recursive(
    st.text() | st.integers() | st.just(f"x{KEY}y"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(KEY), inner),
)


@given(trees)
def test_no_key_is_left_anywhere_in_a_json_value(value: object) -> None:
    redactor = log.Redactor()
    redactor.add(KEY)
    assert KEY not in json.dumps(redactor.json(value))


def test_other_loggers_are_left_alone(redact: log.Redactor) -> None:
    root = list(logging.getLogger().handlers)
    log.configure(redact)
    assert logging.getLogger().handlers == root
    assert not log.LOGGER.propagate


def test_half_a_surrogate_pair_is_no_reason_to_lose_a_line(
    redact: log.Redactor, capfd: pytest.CaptureFixture[str]
) -> None:
    log.configure(redact)
    log.LOGGER.warning("odd: %s", "\ud800")
    out, err = capfd.readouterr()
    assert json.loads(out)["message"] == "odd: \ud800"
    assert err == ""
