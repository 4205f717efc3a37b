"""`python -m vertex_launch verify`: say what will be done, ask, measure, and show the table."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.auth.credentials import Credentials

from vertex_launch import __version__
from vertex_launch.adapters.google_api import is_plaintext
from vertex_launch.adapters.record_storage import RecordStorage
from vertex_launch.clients import Clients
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, LaunchError, Message
from vertex_launch.functions import ROOT
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.preflight.credentials import Endpoints, find
from vertex_launch.settings import config
from vertex_launch.settings.config import Settings, bucket_of
from vertex_launch.verify import jobs, queues, runner, table
from vertex_launch.verify.assumptions import ASSUMPTIONS, Group
from vertex_launch.verify.bench import Bench, Clock
from vertex_launch.verify.deployment import Deployment, Outside
from vertex_launch.verify.findings import Finding, Verdict
from vertex_launch.verify.outside import MONITORING_ADDRESS, DispatchNow, Monitoring, Subscriptions
from vertex_launch.verify.runner import Plan, Step
from vertex_launch.verify.wandb_setup import Recorder, Setup

PUBLIC = ("api.wandb.ai", "api.forge.coreweave.com")
"""W&B's own servers, whose names say nothing about who uses them."""

SAID = ("measured", "remedy", "words")
"""Parts of a finding in the report that can have names in them."""

LATER = ("item", "account")
"""Jobs that are not created first: one is made by the deployment, and the other one should be refused."""

FITS, DIFFERS, USAGE, DECLINED = 0, 1, 2, 3
"""The exit statuses; one that is ended by a signal is 128 and its number."""

EPILOG = """\
examples:
  python -m vertex_launch verify                  everything, after a question
  python -m vertex_launch verify --only wandb     without jobs, in minutes
  python -m vertex_launch verify --only vertex-list,wandb-lease
  python -m vertex_launch verify --yes --json verify.json           in CI

Each row of the table begins with one of these words:
  ok    as the documentation says, and the settings fit
  note  it differs, and the product copes
  FAIL  it differs, or could not be measured; below the table is what to do
  skip  it was not measured; the row says why

names for --only: wandb, vertex, deployment, or
{names}

exit status: 0 nothing fails, 1 a FAIL or something was left behind, 2 wrong
usage or configuration, 3 the answer to the question was no, 130 or 143 stopped
"""


def add(commands: Any) -> None:
    """Add the command to those of the command line."""
    names = "\n".join(f"  {one.name:<24}{one.assumed}" for one in ASSUMPTIONS)
    parser = commands.add_parser(
        "verify",
        help="measure in your own project what the documentation assumes",
        description="Measure in your own project what the documentation assumes about W&B, Vertex AI\n"
        "and the deployment. Makes a queue and a few small jobs, and removes them.",
        epilog=EPILOG.format(names=names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=_names, default=[], metavar="NAMES", help="measure only these, separated by commas"
    )
    parser.add_argument(
        "--queue", default="", metavar="NAME", help="use this queue, which must be empty and not served"
    )
    parser.add_argument(
        "--dispatch-now",
        default=os.environ.get("DISPATCH_NOW", ""),
        metavar="URL",
        help="the URL of the function dispatch_now (default: the variable DISPATCH_NOW)",
    )
    parser.add_argument("--keep", action="store_true", help="do not remove what was made, and list it")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the findings as JSON, without names and keys"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before it begins")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace, clock: Clock | None = None) -> int:
    """Run the command and return the exit status."""
    redact = Redactor()
    redact.pin(os.environ.get("WANDB_API_KEY", ""))
    LOGGER.addHandler(logging.NullHandler())  # the table reports what the adapters log
    LOGGER.propagate = False
    if given.json and not os.access(given.json if given.json.exists() else given.json.parent, os.W_OK):
        print(f"--json: {given.json} cannot be written. Name a file in a folder that exists.", file=sys.stderr)
        return USAGE
    try:
        settings, credentials = _connect()
        if given.queue in settings.queues:
            print(
                f"--queue: the deployment serves {given.queue}. Name a queue that it does not serve.", file=sys.stderr
            )
            return USAGE
        return _verify(given, settings, credentials, redact, clock or Clock())
    except ConfigError as error:
        print("\n".join(error.lines), file=sys.stderr)
        return USAGE
    except LaunchError as error:
        print(redact(str(error)), file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - the traceback must not show the key either
        print(redact(traceback.format_exc()), file=sys.stderr)
        return DIFFERS


def _connect() -> tuple[Settings, Credentials | None]:
    """Return the settings, and credentials if a service needs them. Raises ConfigError, Unavailable."""
    environ = {variable: value for variable, value in os.environ.items() if value}
    settings, endpoints = config.load(environ, ROOT), Endpoints.of(environ)
    plaintext = is_plaintext(settings.aiplatform_endpoint) and is_plaintext(settings.secretmanager_endpoint)
    if plaintext and {"STORAGE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST"} <= environ.keys():
        return settings, None
    return settings, find(None, endpoints, timeout=settings.timeouts.look, project=settings.project).credentials


def _verify(
    given: argparse.Namespace, settings: Settings, credentials: Credentials | None, redact: Redactor, clock: Clock
) -> int:
    wanted = runner.selected(given.only)
    bench = Bench(settings, redact, secrets.token_hex(4), clock, show=_progress, keep=given.keep)
    clients = Clients(settings, redact, credentials)
    vertex = Clients(jobs.own_settings(bench), redact, credentials).vertex
    wandb = Recorder(settings, clients.key)
    own = queues.Queues(bench, wandb, Setup(settings, clients.key), given.queue)
    own_jobs = jobs.Jobs(bench, vertex, clients.key, own)
    outside = Outside(
        lambda: Subscriptions(clients.publisher, credentials),
        lambda: RecordStorage(settings, clients.storage),
        clients.vertex,
        Monitoring(os.environ.get("MONITORING_ENDPOINT") or MONITORING_ADDRESS, credentials),
        DispatchNow(given.dispatch_now, credentials) if given.dispatch_now else None,
        ROOT / "infra/monitoring/alerts",
    )
    steps = _steps(own, own_jobs, Deployment(bench, outside, own))
    plan, entity = runner.plan(steps, wanted), own.entity
    user, _ = wandb.viewer()  # wrong credentials show before the question
    print(_intent(settings, plan, entity, wanted, given))
    if not given.yes and not _agreed():
        print("Nothing was done.")
        return DECLINED
    with _signals(bench):
        findings, interrupted = runner.measure(
            bench, steps, wanted, partial(own_jobs.begin, *(kind for kind in plan.jobs if kind not in LATER))
        )
    print(f"\n{_report(bench, findings)}")
    if given.json:
        anonymous = table.Anonymous(_names_of(settings, entity, user, given.dispatch_now))
        given.json.write_text(json.dumps(redact.json(_json(bench, findings, anonymous)), indent=2) + "\n")
        print(f"Written to {given.json}, without names and keys.")
    if interrupted:
        return 128 + interrupted.number
    differs = any(one.verdict is Verdict.FAIL for one in findings)
    return DIFFERS if differs or (bench.left and not given.keep) else FITS


def _steps(own: queues.Queues, vertex: jobs.Jobs, deployment: Deployment) -> tuple[Step, ...]:
    """Return the measurements in an order in which jobs run while others are measured."""

    kinds = tuple(jobs.EXPECTED)
    return (
        Step(
            ("vertex-create", "vertex-get", "vertex-labels", "vertex-list"),
            "Vertex AI: creates jobs and looks for them in lists",
            vertex.create,
            ("run",),
        ),
        Step(("vertex-account",), "Vertex AI: creates a job with a wrong account", vertex.account, ("account",)),
        Step(("vertex-cancel",), "Vertex AI: cancels a job", vertex.cancel, ("cancel",)),
        Step(("deployment-tick",), "deployment: publishes a tick", deployment.tick),
        Step(("deployment-item",), "deployment: pushes an item", deployment.item, ("item",)),
        Step(("wandb-agent-queues",), "W&B: creates a queue and an agent", own.agents),
        Step(("wandb-batches",), "W&B: sends several operations in one request", own.batches),
        Step(("wandb-lease", "wandb-late-ack"), "W&B: waits for the end of a lease", own.lease),
        Step(("wandb-refused-ack", "wandb-failure"), "W&B: claims and fails an item", own.acks),
        Step(("wandb-warning", "wandb-message-length"), "W&B: warns about an item", own.messages),
        Step(("wandb-heartbeat", "wandb-stop"), "W&B: starts and stops a run", own.runs),
        Step(("wandb-documents",), "W&B: sends every document of a pass", own.documents),
        *(
            Step((name,), f"Vertex AI: waits for the job {kind}", partial(vertex.failed, kind), (kind,))
            for kind, (name, _) in jobs.EXPECTED.items()
        ),
        Step(("vertex-error-delay",), "Vertex AI: waits for errors", vertex.error_delay, kinds),
        Step(("vertex-run-delay",), "Vertex AI: waits for the job with a run", vertex.run, ("run",)),
        Step(
            ("deployment-log-entry", "deployment-next-pass"),
            "deployment: waits for the end of the item's job",
            deployment.job_end,
            ("item",),
        ),
        Step(("deployment-caller", "deployment-refusal"), "deployment: calls dispatch_now", deployment.callers),
        Step(("deployment-dead-letter",), "deployment: makes a dead letter", deployment.dead_letter),
        Step(("deployment-metrics",), "deployment: reads the metrics of alerts", deployment.metrics),
    )


def _intent(settings: Settings, plan: Plan, entity: str, wanted: frozenset[str], given: argparse.Namespace) -> str:
    """Return what the command will do, and what that takes at most."""
    groups = {one.group for one in ASSUMPTIONS if one.name in wanted}
    makes = []
    if Group.WANDB in groups:
        queue = f"items in the queue {given.queue}" if given.queue else "a queue with items"
        makes.append(f"in W&B, for {entity}: {queue}, an agent, an ended sweep, two runs")
    if Group.DEPLOYMENT in groups:
        makes.append(f"in {settings.project}: two ticks, three subscriptions and a topic in Pub/Sub")
    if "item" in plan.jobs:
        makes.append(f"an item in your queue {settings.queues[0]}, which the deployment starts")
    if plan.jobs:
        where = settings.regions[0].name
        makes.append(f"in {settings.project}: {_jobs(plan)} in {where}, {jobs.MACHINE}, {jobs.IMAGE}")
    ends = "keeps them (--keep)" if given.keep else "removes them at its end, also after Ctrl-C"
    lines = [f"This measures {len(wanted)} assumptions of the documentation.", ""]
    width = table.NARROWEST
    for index, one in enumerate(makes):
        begin = f"  {'' if index else 'makes':<7}"
        lines.append(textwrap.fill(one, width, initial_indent=begin, subsequent_indent=" " * 9, break_on_hyphens=False))
    lines += [
        f"  then   {ends}",
        f"  time   about {plan.minutes} minutes",
        f"  cost   at most {plan.dollars:.2f} USD" if plan.jobs else "  cost   nothing",
    ]
    return "\n".join(lines)


def _jobs(plan: Plan) -> str:
    return "1 job" if len(plan.jobs) == 1 else f"up to {len(plan.jobs)} jobs"


def _agreed() -> bool:
    try:
        return input("\nGo on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _signals(bench: Bench) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the measurements, so that everything is removed."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _: bench.interrupts.arrive(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(bench: Bench, findings: Sequence[Finding]) -> str:
    width = min(shutil.get_terminal_size((table.NARROWEST, 24)).columns, 160)
    parts = [bench.redact(table.table(findings, width)), bench.redact(table.remedies(findings, width))]
    if bench.left:
        what = "Kept" if bench.keep else "Not removed"
        parts.append(
            "\n".join([str(Message(Code.VERIFY_LEFT_BEHIND, f"{what}:")), *(f"  {one}" for one in bench.left)])
        )
    counts = {verdict: sum(one.verdict is verdict for one in findings) for verdict in Verdict}
    took = bench.clock.now() - bench.began
    parts.append(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + f", after {took:.0f} s."
    )
    return "\n\n".join(filter(None, parts))


def _json(bench: Bench, findings: Sequence[Finding], anonymous: table.Anonymous) -> dict[str, Any]:
    """Return the report. Only what services and the settings say can have names in it."""
    settings = bench.settings
    return {
        "version": __version__,
        "seconds": round(bench.clock.now() - bench.began, 1),
        "host": anonymous(urlsplit(settings.base_url).hostname),
        "region": settings.regions[0].name,
        "machine": jobs.MACHINE,
        "image": jobs.IMAGE,
        "settings": {
            "lease": settings.lease,
            "stopped_run_timeout": settings.stopped_run_timeout,
            "timeouts": settings.timeouts.model_dump(),
            "batches": settings.batches.model_dump(),
        },
        "findings": [
            {key: anonymous(value) if key in SAID else value for key, value in one.as_json().items()}
            for one in findings
        ],
        "left": anonymous(bench.left),
    }


def _names_of(settings: Settings, entity: str, user: str, dispatch_now: str) -> Mapping[str, str]:
    """Return the names that a report must not have, and what stands for each."""
    buckets = [settings.state_bucket, *(region.staging_bucket for region in settings.regions)]
    names = dict.fromkeys(settings.queues, "<queue>")
    names |= {bucket_of(bucket): "<bucket>" for bucket in buckets if bucket}
    names |= {
        settings.jobs_account or "": "<account>",
        settings.key_secret.partition("/secrets/")[2].partition("/")[0]: "<secret>",
    }
    names |= {settings.deployment: "<deployment>"} if settings.deployment != "default" else {}
    host = urlsplit(settings.base_url).hostname or ""
    names |= {} if host in PUBLIC else {host: "<host>"}
    names |= {urlsplit(dispatch_now).netloc: "<dispatch_now>", user: "<user>"}
    files = (os.environ.get("LAUNCH_CONFIG"), os.environ.get("VERTEX_LAUNCH_CONFIG"), str(ROOT / "main.py"))
    names |= {f"{Path(file).parent}/": "" for file in files if file and "/" in file}
    return names | {entity: "<entity>", settings.project: "<project>"}


def _names(text: str) -> list[str]:
    names = [name for name in re.split(r"[,\s]+", text) if name]
    try:
        runner.selected(names)
    except KeyError as error:
        known = ", ".join([*Group, *(one.name for one in ASSUMPTIONS)])
        raise argparse.ArgumentTypeError(f"{error.args[0]!r} is not one of {known}") from error
    return names
