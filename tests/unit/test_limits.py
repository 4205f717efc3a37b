"""No item costs more than its size, and each bound on an item is named in the message with which the item fails."""

from __future__ import annotations

import json
import logging
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import ENTITY, FULL, SETTINGS, built, item, pool, run_spec, with_settings
from vertex_launch import limits, log
from vertex_launch.adapters.wandb_answer import parse as parse_answer
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, ItemRejected, Message, Problem, Unavailable, brief
from vertex_launch.job.findings import printable
from vertex_launch.job.run_spec import own_key, parse
from vertex_launch.model import JobName, PassReport
from vertex_launch.problems import shown

HUGE = "x" * (limits.LONGEST_ITEM + 1)


def outcome(spec: Any, **changes: Any) -> str:
    """Return the words with which an item fails, the empty text if it does not."""
    try:
        built(spec, with_settings(**changes) if changes else SETTINGS)
    except ItemRejected as error:
        return str(error)
    return ""


def work(call: Callable[[], object]) -> int:
    """Return how many functions are called and generators resumed."""
    steps = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return steps


def args(*values: Any) -> dict[str, Any]:
    return run_spec(spec={"worker_pool_specs": [pool(args=list(values))]})


def env(*values: Any) -> dict[str, Any]:
    return run_spec(spec={"worker_pool_specs": [pool(env=list(values))]})


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


TOO_LARGE: dict[str, Any] = {
    "LONGEST_ITEM": run_spec(anything=HUGE),
    "LONGEST_ITEM as a text": json.dumps(run_spec(anything=HUGE)),
    "LONGEST_ITEM without JSON": "{" * (limits.LONGEST_ITEM + 1),
    "MOST_VALUES": run_spec(anything=[{}] * limits.MOST_VALUES),
    "MOST_VALUES in run_config": run_spec(overrides={"run_config": {str(i): [0] * 300 for i in range(400)}}),
    "DEEPEST": run_spec(anything=nested(200)),
    "LONGEST_NAME of the run": run_spec(name="n" * 5_000),
    "LONGEST_NAME of the id": run_spec(run_id="n" * 5_000),
    "LONGEST_NAME of the project": run_spec(project="n" * 5_000),
    "LONGEST_NAME of the image": run_spec(docker={"docker_image": "n" * 5_000}),
    "LONGEST_FILLED": args(*["${run_name}" * 100] * 10) | {"name": "n" * 4_000},
    "LONGEST_FILLED in an unknown place": run_spec(spec={"labels": {"a": "${author}" * 20_000}}, author="a" * 99),
    "MOST_ENTRIES of variables": env(*[{"name": "A"}] * 2_000),
    "MOST_ENTRIES of pools": run_spec(spec={"worker_pool_specs": [pool(), *[{}] * 2_000]}),
    "LONGEST_JOB by configuration": run_spec(
        spec={"worker_pool_specs": [pool()] * 100}, overrides={"run_config": {"a": "x" * 50_000}}
    ),
    "LONGEST_JOB by arguments": run_spec(
        spec={"worker_pool_specs": [pool()] * 500}, overrides={"args": ["x" * 10_000]}
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_item_over_a_bound_fails_with_the_name_of_the_bound(name: str) -> None:
    found = outcome(TOO_LARGE[name])
    assert f"({name.split()[0]})" in found
    assert Code.SPEC_SIZE in found or name == "DEEPEST"
    assert len(found) < 600


@pytest.mark.parametrize("name", [name for name in TOO_LARGE if name != "LONGEST_ITEM without JSON"])
def test_a_bound_is_kept_before_the_work_is_done(name: str) -> None:
    text = TOO_LARGE[name] if isinstance(TOO_LARGE[name], str) else json.dumps(TOO_LARGE[name])
    outcome(run_spec())  # what is loaded once
    tracemalloc.start()
    outcome(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_the_largest_honest_items_are_jobs() -> None:
    assert outcome(run_spec(overrides={"run_config": {"a": "x" * 900_000}})) == ""
    assert outcome(run_spec(overrides={"run_config": {"a": [0.125] * 90_000}})) == ""
    assert outcome(run_spec(overrides={"args": ["x" * 1_000] * 900})) == ""
    assert outcome(run_spec(name="n" * 4_096, author="${run_name}")) == ""


def test_a_key_that_no_server_gave_is_not_kept() -> None:
    assert own_key(item(run_spec(_wandb_api_key="k" * 100_000))) == ""
    assert "LONGEST_NAME" in outcome(run_spec(_wandb_api_key="k" * 100_000))


LINEAR: dict[str, Callable[[int], dict[str, Any]]] = {
    "empty variables": lambda n: env(*[{}] * n),
    "variables without a name": lambda n: env(*[{"value": "a"}] * n),
    "variables that are no mappings": lambda n: env(*[1] * n),
    "variables with unknown keys": lambda n: env(*[{"nmae": "a", "vlaue": "b"}] * n),
    "variables that are set twice": lambda n: env(*[{"name": f"A{i // 2}"} for i in range(n)]),
    "reserved variables": lambda n: env(*[{"name": f"WANDB_CONFIG_{i}"} for i in range(n)]),
    "template variables": lambda n: args(*[f"{{{{x{i}}}}}" for i in range(n)]),
    "unknown keys": lambda n: run_spec(spec={f"worker_pool_{i}": 1 for i in range(n)}),
    "unknown keys of a pool": lambda n: run_spec(spec={"worker_pool_specs": [{f"machine{i}": 1 for i in range(n)}]}),
    "labels": lambda n: run_spec(spec={"labels": {f"a{i}": "a" for i in range(n)}}),
    "wrong labels": lambda n: run_spec(spec={"labels": {f"A {i}": "a" for i in range(n)}}),
    "resource args": lambda n: run_spec(resource_args={f"r{i}": 1 for i in range(n)}),
    "macros": lambda n: args(*["${run_name}"] * n),
    "numbers": lambda n: args(*range(n)),
    "dollars": lambda n: run_spec(overrides={"args": ["$" * n, "$(" * n], "run_config": {"a": "$$(" * n}}),
    "braces": lambda n: args("{{" * n, "{{ " * n, "{{a" * n, "${" * n),
    "pools": lambda n: run_spec(spec={"worker_pool_specs": [pool()] * n}),
    "pools of another image": lambda n: run_spec(
        spec={"worker_pool_specs": [pool(image_uri=f"i{i}") for i in range(n)]}
    ),
    "values": lambda n: run_spec(anything=[{}] * n),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_check_takes_time_in_proportion_to_the_item(name: str) -> None:
    outcome(run_spec())
    small, large = (work(partial(outcome, json.dumps(LINEAR[name](size)))) for size in (200, 800))
    assert large < 5 * small


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_said_about_an_item_is_short(name: str) -> None:
    spec = LINEAR[name](900)
    assert len(outcome(spec)) <= limits.LONGEST_MESSAGE
    try:
        warnings: tuple[Message, ...] = parse(item(spec), SETTINGS, ENTITY).warnings
    except ItemRejected:
        return
    assert len(warnings) <= limits.MOST_WARNINGS
    assert all(len(str(warning)) <= limits.LONGEST_MESSAGE for warning in warnings)


def test_no_words_of_python_reach_a_person() -> None:
    number = "1" * 5_000
    for spec in ('{"a": ' + number + "}", "{", '{"a": "\\ud800"', "[" * 100_000, '{"a": NaN', "\ud800", {"a": {1, 2}}):
        found = outcome(spec)
        assert Code.SPEC_UNREADABLE in found
        assert not any(word in found for word in ("sys.", "codec", "Expecting", "recursion", "serializable", "int()"))


def test_full_items_still_work() -> None:
    assert outcome(FULL) == ""


# What leaves

KEY = "0123456789abcdef" * 2 + "01234567"
words = st.lists(
    st.sampled_from(["a", KEY, f"x{KEY}x", "word" * 100, "w" * 1_500, KEY * 30, "é", "\n", " "]), max_size=200
)


@given(words)
def test_a_long_text_is_cut_without_cutting_a_key(parts: list[str]) -> None:
    text = " ".join(parts)
    cut = brief(text)
    assert len(cut) <= limits.LONGEST_MESSAGE
    assert cut == text or len(text) > limits.LONGEST_MESSAGE
    left = cut.replace(KEY, "")
    assert not any(KEY[at : at + 8] in left for at in (0, 8, 16, 24, 32))


STRANGE = "q.Zw-9_Lm+Tb~4(Hs)=Kd!7Rv/Nc:2Gx,Pj@5Uf;Ya"
"""A key of another form than W&B's; only the redactor of the exits knows it."""


def refused_by(raw: bytes) -> str:
    response = requests.Response()
    response.status_code, response.url = 400, "https://api.wandb.ai/graphql"
    with pytest.raises(Unavailable) as error:
        parse_answer(response, raw, repeatable=False)
    return str(error.value)


def no_job(text: str) -> str:
    with pytest.raises(ValueError) as error:
        JobName.parse(text)
    return str(error.value)


CUTS: dict[str, Callable[[str], str]] = {
    "a value": shown,
    "a name": printable,
    "the name of a job": no_job,
    "W&B's words": lambda text: refused_by(json.dumps({"errors": [{"message": text}]}).encode()),
    "a proxy's words": lambda text: refused_by(f"<p>{text}</p>".encode()),
    "a line of a job's log": lambda text: log.shorten(text, 250),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("filler", ["x", "ab ", " ", "\n", '{"a":"', "<b>"])
def test_nothing_that_is_quoted_has_half_of_a_key(name: str, filler: str) -> None:
    redact = log.Redactor()
    redact.add(STRANGE)
    for before in [*range(0, 330, 7), *range(2_940, 3_010, 7), *range(5_950, 6_010, 7)]:
        for around in ("", " "):
            text = f"{(filler * before)[:before]}{around}{STRANGE}{around}{filler * 20}"
            left = redact(CUTS[name](text))
            pieces = [STRANGE[at : at + 6] for at in range(len(STRANGE) - 6)]
            assert not any(piece in left for piece in pieces), (before, left)


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a b " * 10**6, "x\n" * 10**6, f"begin {'x' * 10**6} end", KEY * 10**4, "é" * 9_999]
)
def test_a_message_is_short_whatever_its_text_is(text: str) -> None:
    message = Message(Code.UNEXPECTED, text)
    assert len(str(message)) <= limits.LONGEST_MESSAGE
    assert message.text[:5] == text[:5] or message.text.startswith("(")
    assert len(brief(Problem(text, text, text, Code.UNEXPECTED).message.text)) <= limits.LONGEST_MESSAGE


def test_problems_of_a_configuration_are_bounded_in_number() -> None:
    error = ConfigError(
        [Problem(f"setting {number}", "is wrong", "Fix it", Code.CONFIG_VALUE) for number in range(5_000)]
    )
    assert error.lines[-1] == "and 4980 more"
    assert len(str(error).splitlines()) == limits.MOST_PROBLEMS + 1


def test_no_log_entry_is_too_large_for_cloud_logging(capsys: pytest.CaptureFixture[str]) -> None:
    redact = log.Redactor()
    redact.add(KEY)
    log.configure(redact)
    report = PassReport("p")
    report.count_slots(5, 5)
    for number in range(5_000):
        text = Message(Code.SPEC_VALUE, f"{KEY} 🚀 " * 5_000)
        report.deferred.append({"item": str(number), "queue": "q" * 5_000, "reason": text.text})
        report.submitted.append({"item": str(number), "queue": "q"})
    extra = {"event": log.Event.PASS, "report": report.body(), "item": "i" * 10**6}
    try:
        raise ValueError("x " * 10**6)
    except ValueError:
        log.LOGGER.exception("y " * 10**6, extra=extra)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line.encode()) < 256 * 1024
    entry = json.loads(line)
    assert len(entry["message"]) <= limits.LONGEST_MESSAGE
    assert entry["report"]["slots"]["active"] == 5
    lists = {name: len(entry["report"][name]) for name in ("deferred", "submitted")}
    assert {name: lists[name] + entry["report"]["left_out"][name] for name in lists} == dict.fromkeys(lists, 5_000)
    assert lists["submitted"] > 1_000
    assert lists["deferred"]
    assert KEY not in line
    logging.getLogger("vertex_launch").handlers.clear()


def test_a_report_of_ordinary_size_is_whole() -> None:
    report = PassReport("p", submitted=[{"item": str(number)} for number in range(3_000)])
    assert report.counts["submitted"] == len(report.body()["submitted"]) == 3_000
    assert "left_out" not in report.body()
