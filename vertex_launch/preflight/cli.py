"""`python -m vertex_launch check`: report line by line whether everything is ready for the functions. Changes nothing."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, TypeVar

# Set before gRPC is loaded, because its own log lines would appear between ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from vertex_launch.adapters.google_api import is_plaintext
from vertex_launch.clients import Clients
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Message, Unavailable
from vertex_launch.functions import ROOT
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.preflight import credentials
from vertex_launch.preflight.checks import Asked, Function, Outside, Preflight
from vertex_launch.preflight.credentials import Endpoints, Identity
from vertex_launch.preflight.lines import Line, Verdict, fail, ok, skip, warn
from vertex_launch.preflight.metrics import Metrics
from vertex_launch.preflight.permissions import (
    AccountPermissions,
    BucketPermissions,
    ProjectPermissions,
    TopicPermissions,
)
from vertex_launch.settings import config

T = TypeVar("T")

TIMEOUT = 10.0
"""Seconds to wait for an answer: a person is waiting, and can run the command again."""

CONFIGURATION = "configuration"
SECRETS, VERTEX, STORAGE, PUBSUB = "Secret Manager", "Vertex AI", "Cloud Storage", "Pub/Sub"
PROJECTS, ACCOUNTS, LOGS = "Resource Manager", "IAM", "Cloud Logging"

NOBODY = "a caller without credentials"
UNKNOWN = "the account of these credentials"

EPILOG = """\
The configuration is read as the functions read it: launch-config.yaml and vertex-launch.yaml next to main.py, or the
files that LAUNCH_CONFIG and VERTEX_LAUNCH_CONFIG name. Environment variables override both files, so set those that the
functions have.

Each line begins with one of these words:
  ok    it works
  warn  it works, but needs attention, or could not be verified
  FAIL  it does not work; the line says how to fix it
  skip  it was not checked; the line says why
A warn or FAIL line ends with a code, which docs/troubleshooting.md explains. The API key is read and used, never shown.

exit status: 0 safe to deploy, 1 a check fails, 2 wrong usage
"""


def run(given: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if find_spec("google.cloud.iam_admin_v1") is None:
        text = "The preflight needs google-cloud-iam. Run pip install '.[preflight]' in the checkout."
        print(Message(Code.CHECK_EXTRA, text), file=sys.stderr)
        return 2
    redact = Redactor()
    redact.pin(os.environ.get("WANDB_API_KEY", ""))
    LOGGER.addHandler(logging.NullHandler())  # the lines report what the adapters log, and without the key
    LOGGER.propagate = False
    try:
        return _print(_check(given.account, given.function and Function(given.function), redact), redact)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - the traceback must not show the key either
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1


def _print(lines: Iterator[Line], redact: Redactor) -> int:
    """Print lines as they come, then the conclusion, and return the exit status."""
    count: Counter[Verdict] = Counter()
    for line in lines:
        count[line.verdict] += 1
        print(redact(str(line)), flush=True)
    warned = f", {count[Verdict.WARN]} warn" if count[Verdict.WARN] else ""
    if count[Verdict.FAIL]:
        print(f"\nNot safe to deploy: {count[Verdict.FAIL]} FAIL{warned}.")
        return 1
    print(f"\nSafe to deploy: nothing fails{warned}.")
    return 0


def _check(account: str | None, function: Function | None, redact: Redactor) -> Iterator[Line]:
    environ = {variable: value for variable, value in os.environ.items() if value}
    settings = endpoints = identity = None
    try:
        settings = config.load(environ, ROOT)
    except ConfigError as error:
        yield from _problems(error)
    else:
        regions = ", ".join(region.name for region in settings.regions)
        found = f"it is valid: deployment {settings.deployment}, project {settings.project}, jobs in {regions}"
        yield ok(CONFIGURATION, found)
        for message in settings.warnings:
            yield warn(message.code, CONFIGURATION, message.text)
    try:
        endpoints = Endpoints.of(environ)
    except ConfigError as error:
        yield from _problems(error)
    else:
        line, identity = _identity(account, environ, endpoints, settings.project if settings else "")
        yield line
    if settings is None or endpoints is None:
        yield skip("everything else", "needs a valid configuration")
        return
    if function is None and account is not None:
        function = Function.of_account(account)
    outside = _outside(settings, identity, _plaintext(environ, endpoints), endpoints, redact)
    yield from Preflight(settings, outside, function).lines()


def _problems(error: ConfigError) -> Iterator[Line]:
    for problem in error.problems:
        yield fail(problem.code, CONFIGURATION, f"{problem.place}: {problem.found}", problem.remedy)


def _identity(
    account: str | None, environ: Mapping[str, str], endpoints: Endpoints, project: str
) -> tuple[Line, Identity | None]:
    """Return the line about the credentials, and the credentials if they are needed and work."""
    what = "Google credentials"
    if all(_plaintext(environ, endpoints).values()):
        found = "none are used: every service has a plaintext address in the environment"
        if account is None:
            return ok(what, found), None
        return warn(Code.CHECK_IDENTITY, what, f"{found}, so {account}'s permissions are not being tested"), None
    try:
        identity = credentials.find(account, endpoints, timeout=TIMEOUT, project=project)
    except Unavailable as error:
        return fail(error.message.code, what, error.reason), None
    text = f"{account}, impersonated; its permissions are tested"
    if account is None:
        whose = identity.account or UNKNOWN
        text = f"{whose}; its permissions are tested, not the functions' (use --as ACCOUNT for those)"
    if lent := identity.lent_quota:
        run = f"gcloud auth application-default set-quota-project {lent}"
        text += f". They name no quota project, so {lent} is used; other tools need `{run}`"
    return ok(what, text), identity


def _plaintext(environ: Mapping[str, str], endpoints: Endpoints) -> dict[str, bool]:
    """Return for each service whether it is used in plaintext, and so without credentials."""
    return {
        SECRETS: is_plaintext(environ.get("SECRETMANAGER_ENDPOINT")),
        VERTEX: is_plaintext(environ.get("AIPLATFORM_ENDPOINT")),
        STORAGE: "STORAGE_EMULATOR_HOST" in environ,
        PUBSUB: "PUBSUB_EMULATOR_HOST" in environ,
        PROJECTS: is_plaintext(endpoints.cloudresourcemanager),
        ACCOUNTS: is_plaintext(endpoints.iam),
    }


def _outside(
    settings: config.Settings,
    identity: Identity | None,
    plaintext: Mapping[str, bool],
    endpoints: Endpoints,
    redact: Redactor,
) -> Outside:
    """Return every service that can be asked with the credentials that there are."""
    given = settings.timeouts
    bounded = {"look": min(given.look, TIMEOUT), "read": min(given.read, TIMEOUT)}
    settings = settings.model_copy(update={"timeouts": given.model_copy(update=bounded)})
    anonymous, timeout = Clients(settings, redact), settings.timeouts.look
    ours = identity and Clients(settings, redact, identity.credentials)
    whose = (identity and identity.account) or UNKNOWN

    def asked(service: str, make: Callable[[Clients], T]) -> Asked[T] | None:
        if plaintext[service]:
            return Asked(make(anonymous), NOBODY)
        return Asked(make(ours), whose) if ours else None

    plaintext = {**plaintext, LOGS: is_plaintext(settings.logging_endpoint)}
    wandb = asked(SECRETS, lambda clients: clients.queue)
    return Outside(
        key=asked(SECRETS, lambda clients: clients.key),
        wandb=wandb.service if wandb else None,
        jobs=asked(VERTEX, lambda clients: clients.vertex),
        projects=asked(
            PROJECTS,
            lambda clients: ProjectPermissions(
                PROJECTS, clients.projects(endpoints.cloudresourcemanager), timeout=timeout
            ),
        ),
        accounts=asked(
            ACCOUNTS, lambda clients: AccountPermissions(ACCOUNTS, clients.accounts(endpoints.iam), timeout=timeout)
        ),
        buckets=asked(STORAGE, lambda clients: BucketPermissions(STORAGE, clients.storage, timeout=timeout)),
        topics=asked(PUBSUB, lambda clients: TopicPermissions(PUBSUB, clients.publisher, timeout=timeout)),
        metrics=asked(LOGS, lambda clients: Metrics(LOGS, clients.metrics, timeout=timeout)),
    )


def add(commands: Any) -> None:
    """Add the command to those of the command line."""
    check = commands.add_parser(
        "check",
        help="check the configuration and everything that the functions need",
        description="Check the configuration and everything that the functions need. Changes nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "--as",
        dest="account",
        type=_account,
        metavar="ACCOUNT",
        help="test the permissions of this service account (its email address) instead of your own; you need "
        "roles/iam.serviceAccountTokenCreator on it",
    )
    check.add_argument(
        "--function",
        choices=[function.value for function in Function],
        help="check only what this function needs; by default the function whose account is ACCOUNT (it ends with "
        "-dispatch, -now or -job-state), else everything",
    )
    check.set_defaults(run=run)


def _account(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the email address of a service account")
    return text
