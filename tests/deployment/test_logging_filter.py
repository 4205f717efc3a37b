"""The query language of Cloud Logging, by the examples of its documentation, and what of it is refused here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.logging_filter import FilterError, extract, parse

ENTRY: dict[str, Any] = {
    "severity": "ERROR",
    "logName": "projects/p/logs/run.googleapis.com%2Fstdout",
    "resource": {"type": "cloud_run_revision", "labels": {"service_name": "vertex-launch-dispatch"}},
    "labels": {"ml.googleapis.com/job_state": "SUCCEEDED"},
    "jsonPayload": {
        "event": "failed",
        "count": 5,
        "half": 0.5,
        "good": True,
        "nothing": None,
        "list": ["a"],
        "part": {"took_ms": 812, "odd name": "x"},
        "quoted": 'say "no"',
    },
}
TEXT: dict[str, Any] = {"resource": {"type": "ml_job", "labels": {}}, "textPayload": "Job failed."}
REQUEST: dict[str, Any] = {"httpRequest": {"status": 429}, "severity": "WARNING"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        'resource.type="cloud_run_revision"',
        "resource.type = cloud_run_revision",
        'resource.type="CLOUD_RUN_revision"',
        'resource.labels.service_name=("a" OR "vertex-launch-dispatch")',
        'labels."ml.googleapis.com/job_state"=SUCCEEDED',
        'labels."ml.googleapis.com/job_state":*',
        'labels."ml.googleapis.com/job_state":"ucce"',
        'jsonPayload.part."odd name"="x"',
        r'jsonPayload.quoted="say \"no\""',
        "severity>=ERROR",
        'severity="error" severity<critical severity!=INFO',
        "jsonPayload.count=5 AND jsonPayload.count>=5 AND jsonPayload.half<1 AND jsonPayload.half>-1",
        'jsonPayload.count="5" AND jsonPayload.count:5',
        "jsonPayload.good=true AND jsonPayload.good!=FALSE",
        'jsonPayload.event:"FAIL"',
        'jsonPayload.event>"ab"',
        'jsonPayload.event=~"^fail"',
        'jsonPayload.event=~"ai"',
        'jsonPayload.event!~"^ail"',
        "NOT jsonPayload.absent=1",
        "NOT jsonPayload.absent:*",
        "NOT NOT jsonPayload.event:*",
        'jsonPayload.event="x" OR jsonPayload.event="failed" AND severity=ERROR',
        'severity=ERROR AND jsonPayload.event="x" OR jsonPayload.event="failed"',
        '(jsonPayload.event="x" AND severity=ERROR) OR jsonPayload.event="failed"',
        'resource.type="cloud_run_revision" -- a comment\nseverity=ERROR\n-- and another one',
        "httpRequest.status=0",
        'textPayload=""',
    ],
)
def test_filters_that_mean_the_entry(text: str) -> None:
    assert parse(text)(ENTRY)


@pytest.mark.parametrize(
    "text",
    [
        'resource.type="cloud_run"',
        'resource.labels.service_name="vertex-launch"',
        'resource.labels.service_name=("a" OR "b")',
        "resource.labels.absent:*",
        "severity<ERROR",
        "jsonPayload.absent=1",
        "jsonPayload.absent!=1",
        'jsonPayload.absent!~"x"',
        "jsonPayload.nothing=0",
        "jsonPayload.event.deeper:*",
        "textPayload:*",
        "httpRequest.status:*",
        "jsonPayload.count=many",
        "jsonPayload.count:1",
        "jsonPayload.good=5",
        'jsonPayload.count=~"5"',
        'jsonPayload.event=~"FAIL"',
        'jsonPayload.event=~"^ail"',
        'jsonPayload.EVENT="failed"',
        "NOT severity=ERROR OR severity=INFO",
        'jsonPayload.event="failed" OR jsonPayload.event="x" AND severity=INFO',
        'NOT (jsonPayload.event="failed" severity=ERROR)',
    ],
)
def test_filters_that_do_not_mean_the_entry(text: str) -> None:
    assert not parse(text)(ENTRY)


def test_what_an_entry_lacks_has_a_default() -> None:
    assert parse("severity=DEFAULT AND NOT severity:*")(TEXT)
    assert parse("httpRequest.status>=400 httpRequest.status<500")(REQUEST)
    assert not parse("httpRequest.status>=400")(TEXT)
    assert parse('textPayload:("no" OR "FAILED")')(TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unicorn", "a comparison was expected at the end"),
        ('"unicorn"', "a field was expected, not '\"unicorn\"'"),
        ('SEARCH("unicorn")', "a comparison was expected between 'SEARCH' and '('"),
        ("severity", "a comparison was expected at the end"),
        ("severity>=", "a value was expected at the end"),
        ("severity>=)", "a value was expected, not ')'"),
        ("severity>=FATAL", "severities are DEFAULT"),
        ("severity:ERR", "severities are DEFAULT"),
        ("(severity=ERROR", "a closing parenthesis was expected before 'the end'"),
        ('resource.type=("a" AND "b")', "a closing parenthesis was expected before 'AND'"),
        ("severity=ERROR)", "was expected before ')'"),
        ("-severity=ERROR", "a field was expected, not '-severity'"),
        ("severity=ERROR and resource.type=a", "a comparison was expected between 'and' and 'resource.type'"),
        ("severity=ERROR AND", "a field was expected at the end"),
        ("NOT", "a field was expected at the end"),
        ("AND severity=ERROR", "a field was expected, not 'AND'"),
        ('severity=ERROR AND AND jsonPayload.a="b"', "a field was expected, not 'AND'"),
        ("thud=1", "'thud' is no field that is known here"),
        ("timestamp>=2026", "'timestamp' is no field that is known here"),
        ("textPayload.thud=1", "no field that is known here"),
        ("jsonPayload.=1", "no field that is known here"),
        ("jsonPayload.a=NULL_VALUE", "is not supported"),
        ("jsonPayload.a=*", "is not supported"),
        ('jsonPayload.a="open', "cannot be read"),
        ("jsonPayload.a=b,c", "cannot be read"),
        ("jsonPayload.a=~b", "a regular expression of RE2 was expected, in quotes"),
        (r'jsonPayload.a=~"(?=x)"', "a regular expression of RE2"),
    ],
)
def test_what_is_not_known_is_refused(text: str, said: str) -> None:
    with pytest.raises(FilterError) as error:
        parse(text)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["list", "part"])
def test_only_single_values_are_compared(name: str) -> None:
    with pytest.raises(FilterError, match="cannot be compared"):
        parse(f"jsonPayload.{name}=1")(ENTRY)


def test_what_is_extracted() -> None:
    assert extract("EXTRACT(jsonPayload.part.took_ms)", ENTRY) == 812
    assert extract("EXTRACT(jsonPayload.half)", ENTRY) == 0.5
    assert extract("EXTRACT(jsonPayload.absent)", ENTRY) is None
    assert extract("EXTRACT(jsonPayload.event)", ENTRY) is None
    with pytest.raises(FilterError, match=r"write EXTRACT\(field\)"):
        extract('REGEXP_EXTRACT(jsonPayload.event, "(.)")', ENTRY)
    with pytest.raises(FilterError, match="no field"):
        extract("EXTRACT(thud)", ENTRY)
