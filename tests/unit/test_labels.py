"""Labels are valid for any input and distinguish what must be distinguished."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from google.cloud.aiplatform_v1.types import JobState
from hypothesis import given
from hypothesis import strategies as st

from tests.support import specs
from vertex_launch.job import labels
from vertex_launch.job.build import job_labels
from vertex_launch.job.run_spec import parse
from vertex_launch.model import Item, Kind, RunId

anything = st.text(st.characters()) | st.text("aB_-.é", max_size=70)
"""Any text that a str can hold, halves of surrogate pairs among it."""


@given(anything)
def test_any_text_has_a_valid_value(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9_-]{0,63}", labels.value(text))


@given(st.text("abc0_-", max_size=63))
def test_valid_text_stays_as_it_is(text: str) -> None:
    assert labels.value(text) == text


@given(anything, anything)
def test_two_texts_never_share_a_value(one: str, other: str) -> None:
    assert (labels.value(one) == labels.value(other)) == (one == other)


def test_texts_that_differ_only_in_case_or_at_their_end_have_different_values() -> None:
    assert labels.value("Team") != labels.value("team")
    assert labels.value("x" * 63 + "1") != labels.value("x" * 63 + "2")
    assert labels.value("Team").startswith("team-")


@given(anything, anything, anything, anything, st.sampled_from(Kind), st.sampled_from(["", "k" * 40]))
def test_all_labels_of_a_job_are_valid(deployment: str, item: str, run: str, queue: str, kind: Kind, key: str) -> None:
    spec = replace(
        parse(specs.item(specs.MINIMAL), specs.SETTINGS, "acme"), run=RunId("", "", run), kind=kind, api_key=key
    )
    settings = specs.SETTINGS.model_copy(update={"deployment": deployment})
    made = job_labels(Item(item, queue, None), spec, settings, "acme")
    assert set(made) == labels.OWN_KEYS - (set() if key else {labels.KEY})
    for key, value in made.items():
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key)
        assert re.fullmatch(r"[a-z0-9_-]{0,63}", value)


@given(anything, anything, anything, anything)
def test_a_derived_run_id_is_stable_and_valid(base: str, entity: str, item: str, deployment: str) -> None:
    run = labels.run_id(base, entity, item, deployment)
    assert re.fullmatch(r"vl[0-9a-z]{12}", run)
    assert run == labels.run_id(base, entity, item, deployment)


def test_an_identity_depends_on_each_of_its_parts() -> None:
    base, other = ("https://a", "acme", "Item1"), ("https://b", "acne", "item1")
    seen = {labels.item_value(*base)}
    for index in range(3):
        parts = [*base]
        parts[index] = other[index]
        seen.add(labels.item_value(*parts))
    assert len(seen) == 4
    assert labels.run_id(*base, "blue") != labels.run_id(*base, "green")
    assert labels.item_value("a", "b", "c") != labels.item_value("a", "bc", "")


def test_a_slash_at_the_end_of_the_servers_address_makes_no_difference() -> None:
    assert labels.item_value("https://a/", "e", "i") == labels.item_value("https://a", "e", "i")
    assert labels.run_id("https://a/", "e", "i", "d") == labels.run_id("https://a", "e", "i", "d")


def test_the_filter_names_the_deployment_and_excludes_ended_jobs() -> None:
    everything = labels.list_filter("My Team", active=False)
    assert everything == f'labels.vertex_launch="{labels.value("My Team")}"'
    active = labels.list_filter("My Team", active=True)
    left_out = re.findall(r'state!="(\w+)"', active)
    assert active.startswith(f"{everything} AND ")
    assert {JobState[name].value for name in left_out} == {4, 5, 7, 9, 11}


SAME = (
    *("https://api.wandb.ai", "https://api.forge.coreweave.com", "https://api.forge.coreweave.com/"),
    *("https://api.wandb.ai:443", "https://API.wandb.ai"),
)
OTHERS = (
    *("https://api.wandb.ai/proxy", "https://api.qa.wandb.ai", "https://w.example", "http://api.wandb.ai"),
    *("https://api.wandb.ai:8080", "https://api.wandb.ai.example", "https://[", "https://api.wandb.ai:x"),
)


def test_the_addresses_of_the_cloud_are_one_server() -> None:
    assert len({labels.item_value(url, "acme", "I1") for url in SAME}) == 1
    assert len({labels.run_id(url, "acme", "I1", "d") for url in SAME}) == 1
    assert labels.item_value("https://api.qa.wandb.ai", "a", "b") == labels.item_value(
        "https://api.qa.forge.coreweave.com", "a", "b"
    )
    assert len({labels.run_id(url, "acme", "I1", "d") for url in (SAME[0], *OTHERS)}) == 1 + len(OTHERS)


def test_jobs_keep_their_labels_after_an_upgrade() -> None:
    """As the version before wrote them."""
    digest = hashlib.sha256(b"https://api.wandb.ai\0acme\0I1").hexdigest()
    assert labels.item_value("https://api.forge.coreweave.com", "acme", "I1") == digest[:40]
