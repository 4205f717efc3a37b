"""The reader of Cloud Logging's query language, with examples of its documentation and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.logging_filter import FilterError, extract, parse

ENTRY: dict[str, Any] = {
    "severity": "ERROR",
    "resource": {"type": "cloud_run_revision", "labels": {"service_name": "vertex-launch-dispatch"}},
    "labels": {"ml.googleapis.com/job_state": "SUCCEEDED"},
    "jsonPayload": {
        "event": "failed",
        "count": 5,
        "half": 0.5,
        "nothing": None,
        "list": ["a"],
        "part": {"took_ms": 812, "odd name": "x"},
        "quoted": 'say "no"',
    },
}
TEXT: dict[str, Any] = {"resource": {"type": "ml_job", "labels": {}}, "textPayload": "Job failed."}


@pytest.mark.parametrize(
    "text",
    [
        'resource.type="cloud_run_revision"',
        "resource.type = cloud_run_revision",
        'resource.type="CLOUD_RUN_revision"',
        'resource.labels.service_name=("a" OR "vertex-launch-dispatch")',
        'labels."ml.googleapis.com/job_state"=SUCCEEDED',
        'labels."ml.googleapis.com/job_state":*',
        'labels."ml.googleapis.com/job_state":"ucce"',
        'jsonPayload.part."odd name"="x"',
        r'jsonPayload.quoted="say \"no\""',
        "severity>=ERROR severity=ERROR",
        "jsonPayload.count=5 AND jsonPayload.count>=5 AND jsonPayload.half>=-1",
        'jsonPayload.count="5" AND jsonPayload.count:5',
        'jsonPayload.event:"FAIL"',
        'jsonPayload.event=~"^fail"',
        'jsonPayload.event=~"ai"',
        "NOT jsonPayload.absent=1",
        "NOT jsonPayload.absent:*",
        "NOT NOT jsonPayload.event:*",
        'jsonPayload.event="x" OR jsonPayload.event="failed" AND severity=ERROR',
        'severity=ERROR AND jsonPayload.event="x" OR jsonPayload.event="failed"',
        '(jsonPayload.event="x" AND severity=ERROR) OR jsonPayload.event="failed"',
        'textPayload=""',
    ],
)
def test_filters_that_match(text: str) -> None:
    assert parse(text)(ENTRY)


@pytest.mark.parametrize(
    "text",
    [
        'resource.type="cloud_run"',
        'resource.labels.service_name="vertex-launch"',
        'resource.labels.service_name=("a" OR "b")',
        "resource.labels.absent:*",
        "severity>=CRITICAL",
        "jsonPayload.absent=1",
        'jsonPayload.absent=~"x"',
        "jsonPayload.nothing=0",
        "jsonPayload.event.deeper:*",
        "textPayload:*",
        "jsonPayload.count:1",
        'jsonPayload.event=~"FAIL"',
        'jsonPayload.event=~"^ail"',
        'jsonPayload.EVENT="failed"',
        "NOT severity=ERROR OR severity=INFO",
        'jsonPayload.event="failed" OR jsonPayload.event="x" AND severity=INFO',
        'NOT (jsonPayload.event="failed" severity=ERROR)',
    ],
)
def test_filters_that_do_not_match(text: str) -> None:
    assert not parse(text)(ENTRY)


def test_defaults_of_fields() -> None:
    assert parse("severity=DEFAULT AND NOT severity:*")(TEXT)
    assert parse('textPayload:("no" OR "FAILED")')(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unicorn",
        'SEARCH("unicorn")',
        "severity",
        "severity>=",
        "severity>=)",
        "severity>=FATAL",
        "severity:ERR",
        "(severity=ERROR",
        'resource.type=("a" AND "b")',
        "severity=ERROR)",
        "-severity=ERROR",
        "severity=ERROR and resource.type=a",
        "severity=ERROR AND",
        "NOT",
        "AND severity=ERROR",
        'severity=ERROR AND AND jsonPayload.a="b"',
        "severity!=ERROR",
        "thud=1",
        "timestamp>=2026",
        "textPayload.thud=1",
        "jsonPayload.=1",
        "jsonPayload.a=NULL_VALUE",
        "jsonPayload.a=*",
        'jsonPayload.a="open',
        "jsonPayload.a=b,c",
        "jsonPayload.a=~b",
        r'jsonPayload.a=~"(?=x)"',
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        parse(text)


@pytest.mark.parametrize("name", ["list", "part", "event"])
def test_values_that_cannot_be_compared(name: str) -> None:
    with pytest.raises(FilterError):
        parse(f"jsonPayload.{name}>=1")(ENTRY)


def test_extracted_values() -> None:
    assert extract("EXTRACT(jsonPayload.part.took_ms)", ENTRY) == 812
    assert extract("EXTRACT(jsonPayload.half)", ENTRY) == 0.5
    assert extract("EXTRACT(jsonPayload.absent)", ENTRY) is None
    assert extract("EXTRACT(jsonPayload.event)", ENTRY) is None
    for extractor in ('REGEXP_EXTRACT(jsonPayload.event, "(.)")', "EXTRACT(thud)"):
        with pytest.raises(FilterError):
            extract(extractor, ENTRY)
