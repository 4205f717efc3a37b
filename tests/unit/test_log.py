"""Logs for Cloud Logging, and the redaction of keys."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.errors import Message

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


class Holder:
    def __str__(self) -> str:
        return f"holds {KEY}"


FORMS = (KEY, base64.b64encode(KEY.encode()).decode(), base64.b64encode(f"api:{KEY}".encode()).decode())


@pytest.mark.parametrize("form", FORMS)
def test_no_field_and_no_traceback_holds_a_key(
    redact: log.Redactor, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    log.configure(redact)
    fields = dict.fromkeys(log.FIELDS, form) | {"report": {form: [form, Holder()]}, "item": Holder(), "run": (form,)}
    del fields["code"]
    try:
        raise ValueError(form) from KeyError(form)
    except ValueError as error:
        log.write(logging.ERROR, Message(Code.UNEXPECTED, f"a message with {form}"), error=error, **fields)
    out = capsys.readouterr().out
    assert not [form for form in FORMS if form in out]
    entry = json.loads(out)
    assert entry["code"] == Code.UNEXPECTED
    assert entry["report"] == {"<redacted>": ["<redacted>", "holds <redacted>"]}
    assert "ValueError: <redacted>" in entry["message"]
    assert "KeyError: '<redacted>'" in entry["message"]


@pytest.mark.parametrize(
    ("write", "severity"), [(log.warning, "WARNING"), (partial(log.write, logging.ERROR), "ERROR")]
)
def test_a_problem_has_its_code(
    redact: log.Redactor, capsys: pytest.CaptureFixture[str], write: Callable[..., None], severity: str
) -> None:
    log.configure(redact)
    write(Message(Code.PASS_BUSY, "first\nsecond"), item="i")
    entry = json.loads(capsys.readouterr().out)
    assert (entry["severity"], entry["code"], entry["item"]) == (severity, "VL-PASS-BUSY", "i")
    assert entry["message"] == "first [VL-PASS-BUSY]\nsecond"


def test_debug_lines_are_off_unless_asked_for(redact: log.Redactor, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(redact)
    log.LOGGER.debug("quiet")
    log.configure(redact, debug=True)
    log.LOGGER.debug("loud")
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["loud"]


def test_short_texts_are_not_keys(redact: log.Redactor) -> None:
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


def test_half_a_surrogate_pair_does_not_lose_a_line(redact: log.Redactor, capfd: pytest.CaptureFixture[str]) -> None:
    log.configure(redact)
    log.LOGGER.warning("odd: %s", "\ud800")
    out, err = capfd.readouterr()
    assert json.loads(out)["message"] == "odd: \ud800"
    assert err == ""
