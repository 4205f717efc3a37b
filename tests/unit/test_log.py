"""Logs for Cloud Logging, and the redaction of keys."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_type_hints
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.errors import Message
from vertex_launch.state.ledger import NAMES, Ledger, Waiting
from vertex_launch.state.open_item import Attempt, OpenItem, Retry

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
    assert len(redact._uses) < 20 * log.Redactor.MOST


def test_keys_of_items_do_not_push_out_the_deployments_own() -> None:
    redact = log.Redactor()
    redact.pin(KEY)
    for i in range(3 * log.Redactor.MOST):
        redact.add(f"key-number-{i}")
    redact.add(KEY)  # an item that brings the same key
    for i in range(3 * log.Redactor.MOST):
        redact.add(f"another-key-{i}")
    assert redact(f"a {KEY} and {base64.b64encode(KEY.encode()).decode()}") == "a <redacted> and <redacted>"
    for i in range(2 * log.Redactor.MOST_PINNED):
        redact.pin(f"rotated-key-{i}")
    assert redact(KEY) == KEY


ODD = 'p<a>"ss\\wörd & more+/%=?>>>'


@pytest.mark.parametrize(
    "key", [KEY, "wandb_v1_" + "aB3_-" * 15, ODD, f" {ODD}\n", "\ud800 half a pair", "local-" + "0a" * 20]
)
@pytest.mark.parametrize("many", [0, 200])
def test_every_form_of_a_key_is_known(key: str, many: int) -> None:
    redact = log.Redactor()
    redact.add(key)
    for i in range(many):
        redact.add(f"key-number-{i}")
    data = key.encode("utf-8", "surrogatepass")
    quoted = quote(data, safe="")
    wholes = [key, json.dumps(key)[1:-1], json.dumps(json.dumps(key))[3:-3], quoted, quote(data), quote_plus(data)]
    wholes += [re.sub("%..", lambda code: code[0].lower(), quoted), html.escape(key), repr(key)[1:-1]]
    wholes += [json.dumps(key, ensure_ascii=False)[1:-1].replace("/", "\\/")]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for text in (encode(data).decode(), encode(b"api:" + data).decode()):
            wholes += [text, text.rstrip("="), quote(text, safe="")]
    for whole in wholes:
        assert redact(f"before {whole} after") == "before <redacted> after"
        assert redact.json({"text": [f"{whole}{whole}"]}) == {"text": ["<redacted><redacted>"]}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in (b"", b"a", b"ab", b"user:", b'{"key":"'):
            for after in (b"", b"z", b"zy", b'"}'):
                text = encode(before + data + after).decode()
                around = redact(text).replace("<redacted>", "")
                assert len(around) <= len(text) - len(data) * 4 // 3 + 4, (before, after)


@pytest.mark.parametrize("kept", [32, 57, 80, 99])
def test_a_key_that_was_cut_is_hidden_but_for_its_last_characters(kept: int) -> None:
    redact = log.Redactor()
    key = "".join(chr(97 + i % 26) + str(i % 10) for i in range(50))
    redact.add(key)
    assert len(redact(f"{key[:kept]}…").replace(log.Redactor.MARK, "")) <= 32
    assert redact(key) == log.Redactor.MARK


def test_long_keys_are_hidden_whole_and_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    redact = log.Redactor()
    redact.pin(KEY)
    token = f"{'h' * 36}.{'abc' * 500}.{'xyz' * 114}"
    redact.add(token)
    for form in (token, base64.b64encode(f"api:{token}".encode()).decode(), json.dumps(token)):
        assert redact(f"a {form} b").replace('"', "") == "a <redacted> b"
    monkeypatch.setattr(log.Redactor, "LARGEST", 500_000)
    for number in range(40):
        redact.add(f"{number}-" + "".join(chr(97 + (number * i) % 26) for i in range(10_000)))
        assert sum(map(len, redact._uses)) == redact._size <= redact.LARGEST
    assert redact(token) != log.Redactor.MARK
    assert redact(KEY) == log.Redactor.MARK


def test_overlapping_keys_are_hidden_whole() -> None:
    redact = log.Redactor()
    for key in ("abcdefgh-ijkl", "ijkl-mnopqrst", "abcdefgh", "cdefgh-i"):
        redact.add(key)
    assert redact("1 abcdefgh-ijkl-mnopqrst 2 abcdefgh 3") == "1 <redacted> 2 <redacted> 3"


@given(st.lists(st.text("ab", min_size=8, max_size=20), max_size=30), st.text("ab ", max_size=200))
def test_many_keys_hide_what_one_after_the_other_would(keys: list[str], text: str) -> None:
    few, many = log.Redactor(), log.Redactor()
    many._FEW = 0
    many._CROWDED = few._CROWDED = 10**6
    for key in keys:
        few.add(key)
        many.add(key)
    hidden = many(text)
    assert not [key for key in keys if key in hidden]
    assert hidden.replace(log.Redactor.MARK, "").count(" ") == text.count(" ")


def test_keys_that_end_alike_are_hidden_with_the_word_before() -> None:
    redact = log.Redactor()
    for i in range(500):
        redact.add(f"{'x' * i}-the-same-end")
    assert redact(f"one {'x' * 400}-the-same-end two") == "one <redacted> two"
    assert redact("one the-same-ending two").startswith("one ")


def test_what_it_costs_does_not_grow_with_the_number_of_keys() -> None:
    """Looks at places of the text, not at the time: each costs one look-up."""
    redact = log.Redactor()
    for i in range(log.Redactor.MOST):
        redact.add(f"wandb_v1_{i:060}")

    class Counting(dict[str, dict[str, None]]):
        looked = 0

        def __contains__(self, key: object) -> bool:
            Counting.looked += 1
            return super().__contains__(key)

    redact._by_end = Counting(redact._by_end)
    text = "the run spec has 3 problems " * 1000
    assert redact(text) == text
    assert Counting.looked <= len(text)


def test_a_word_that_an_item_calls_its_key_breaks_no_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    redact = log.Redactor()
    words = ("severity", "WARNING-", "submitted", "VL-PASS-BUSY", "logging.googleapis.com/trace", "job_ended")
    for word in words:
        redact.add(word)
    log.configure(redact, project="p")
    token = log.trace.set("t")
    try:
        log.warning(Message(Code.PASS_BUSY, "x"), event=log.Event.JOB_ENDED, report={"submitted": 1})
    finally:
        log.trace.reset(token)
    entry = json.loads(capsys.readouterr().out)
    assert entry["severity"] == "WARNING"
    assert (entry["event"], entry["code"], entry["report"]) == ("job_ended", "VL-PASS-BUSY", {"submitted": 1})
    assert "logging.googleapis.com/trace" in entry


def test_every_text_of_the_ledger_is_a_name_or_prose() -> None:
    """A new field must be one of the two: prose is redacted, and an identifier must not be."""
    prose = {"reason", "cancelled", "blocked", "no_retry", "warned"}
    for model in (Ledger, OpenItem, Attempt, Retry, Waiting):
        for name, hint in get_type_hints(model).items():
            if re.search(r"\bstr\b", str(hint).replace("dict[str, ", "")) and not name.startswith("_"):
                assert name in NAMES | prose, f"{model.__name__}.{name}"


def test_an_item_that_calls_anothers_id_its_key_hides_nothing_in_the_ledger() -> None:
    redact = log.Redactor()
    redact.pin(KEY)
    job = "projects/p/locations/us-central1/customJobs/123"
    for word in (
        "UnVuUXVldWVJdGVtOjE=",
        job,
        "us-central1",
        "gcp-vertex",
        "UnVuUXVldWU6MQ==",
        "a-secret-that-it-brought",
    ):
        redact.add(word)
    attempt = Attempt(region="us-central1", planned=1, job=job, reason="says a-secret-that-it-brought")
    entry = OpenItem(
        item="UnVuUXVldWVJdGVtOjE=", queue="gpu", entity="acme", project="demo", run=f"run-{KEY}", attempts=(attempt,)
    )
    entry = replace(entry, refused=("us-central1",))
    ledger = Ledger(open={entry.item: entry}, resources={"UnVuUXVldWU6MQ==": "gcp-vertex"}, turn="UnVuUXVldWU6MQ==")
    dumped = ledger.dump(partial(redact.json, names=NAMES)).decode()
    parsed = Ledger.parse(dumped.encode())
    assert parsed
    assert (parsed.resources, parsed.turn) == (ledger.resources, ledger.turn)
    (found,) = parsed.open.values()
    assert found.refused == ("us-central1",)
    assert (found.item, found.job, found.current.region) == (entry.item, job, "us-central1")
    assert "a-secret" not in dumped
    assert KEY not in dumped


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
