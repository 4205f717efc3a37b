"""`python -m vertex_launch check`: is everything ready for the functions? Says so line by line, and changes nothing."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

# Before gRPC is loaded, which else writes lines of its own between ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from google.auth.credentials import AnonymousCredentials, Credentials
from google.cloud.storage import Client
from google.pubsub_v1 import PublisherClient

from vertex_launch import __version__
from vertex_launch.adapters.grpc_endpoint import is_plaintext
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.errors import ConfigError, Unavailable
from vertex_launch.functions import ROOT
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.preflight import credentials
from vertex_launch.preflight.checks import Asked, Function, Line, Outside, Preflight, Verdict, fail, ok, skip, warn
from vertex_launch.preflight.credentials import Identity
from vertex_launch.preflight.rest import Endpoints, Rest
from vertex_launch.preflight.rights import AccountRights, BucketRights, ProjectRights, TopicRights
from vertex_launch.settings import config

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds for an answer: somebody is waiting, and can ask again."""

CONFIGURATION = "configuration"
SECRETS, VERTEX, STORAGE, PUBSUB = "Secret Manager", "Vertex AI", "Cloud Storage", "Pub/Sub"
PROJECTS, ACCOUNTS = "Resource Manager", "IAM"

NOBODY = "a caller without credentials"
UNKNOWN = "whoever these credentials are for"

EPILOG = """\
The configuration is read as the functions read it: launch-config.yaml and vertex-launch.yaml beside main.py, or where
LAUNCH_CONFIG and VERTEX_LAUNCH_CONFIG say, and the environment over both. Set the variables that the functions will have.

Each line begins with ok, warn (it works, but look at it), FAIL (it does not work; how to mend it follows) or skip (it was
not tested, and why). The API key is read, used and never shown.

exit status: 0 safe to deploy, 1 something fails, 2 wrong usage
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    redact = Redactor()
    redact.add(os.environ.get("WANDB_API_KEY", ""))
    _silence()
    try:
        return _tell(_check(given.account, given.function, redact), redact)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - its traceback, too, goes out without the key
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1


def _tell(lines: Iterator[Line], redact: Redactor) -> int:
    """Print lines as they come, and what they come to."""
    count: Counter[Verdict] = Counter()
    for line in lines:
        count[line.verdict] += 1
        print(redact(str(line)), flush=True)
    warned = f", {count[Verdict.WARN]} to look at" if count[Verdict.WARN] else ""
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
        found = f"it can be used: deployment {settings.deployment}, project {settings.project}, jobs in {regions}"
        yield ok(CONFIGURATION, found)
        yield from (warn(CONFIGURATION, str(warning)) for warning in settings.warnings)
    try:
        endpoints = Endpoints.of(environ)
    except ConfigError as error:
        yield from _problems(error)
    else:
        line, identity = _identity(account, environ, endpoints)
        yield line
    if settings is None or endpoints is None:
        yield skip("everything else", "needs the configuration")
        return
    if function is None and account is not None:
        function = Function.of_account(account)
    services = _Services(settings, identity, environ, endpoints, redact)
    yield from Preflight(settings, services.outside(), function).lines()


def _problems(error: ConfigError) -> Iterator[Line]:
    return (fail(CONFIGURATION, str(problem)) for problem in error.problems)


def _identity(account: str | None, environ: Mapping[str, str], endpoints: Endpoints) -> tuple[Line, Identity | None]:
    """Give the line about the credentials, and them where they are needed and there."""
    what = "Google credentials"
    if all(_plaintext(environ, endpoints).values()):
        found = "none are used: each service is asked in plaintext, at an address that the environment names"
        if account is None:
            return ok(what, found), None
        return warn(what, f"{found}, so that the rights of {account} are not what is tested"), None
    try:
        identity = credentials.find(account, endpoints, timeout=PATIENCE)
    except Unavailable as error:
        return fail(what, error.reason), None
    if account is not None:
        return ok(what, f"{account}, impersonated; its rights are tested"), identity
    found = f"{identity.account or UNKNOWN}; those rights are tested, not the functions' (--as ACCOUNT tests theirs)"
    return ok(what, found), identity


def _plaintext(environ: Mapping[str, str], endpoints: Endpoints) -> dict[str, bool]:
    """Say which services are asked in plaintext, and so without credentials."""
    return {
        SECRETS: is_plaintext(environ.get("SECRETMANAGER_ENDPOINT")),
        VERTEX: is_plaintext(environ.get("AIPLATFORM_ENDPOINT")),
        STORAGE: "STORAGE_EMULATOR_HOST" in environ,
        PUBSUB: "PUBSUB_EMULATOR_HOST" in environ,
        PROJECTS: is_plaintext(endpoints.cloudresourcemanager),
        ACCOUNTS: is_plaintext(endpoints.iam),
    }


class _Services:
    """Makes the clients of all services that can be asked with what there is of credentials."""

    def __init__(
        self,
        settings: config.Settings,
        identity: Identity | None,
        environ: Mapping[str, str],
        endpoints: Endpoints,
        redact: Redactor,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._plaintext = _plaintext(environ, endpoints)
        self._endpoints = endpoints
        self._redact = redact
        self._timeout = min(settings.timeouts.look, PATIENCE)

    def outside(self) -> Outside:
        """Put them together."""
        key = self._asked(SECRETS, self._key)
        return Outside(
            key=key,
            queues=self._queues(key.service) if key else None,
            jobs=self._asked(VERTEX, self._jobs),
            projects=self._asked(PROJECTS, self._projects),
            accounts=self._asked(ACCOUNTS, self._accounts),
            buckets=self._asked(STORAGE, self._buckets),
            topics=self._asked(PUBSUB, self._topics),
        )

    def _asked(self, service: str, make: Callable[[Credentials | None], T]) -> Asked[T] | None:
        if self._plaintext[service]:
            return Asked(make(None), NOBODY)
        if self._identity is None:
            return None
        return Asked(make(self._identity.credentials), self._identity.account or UNKNOWN)

    def _key(self, given: Credentials | None) -> SecretKey:
        settings = self._settings
        return SecretKey(
            settings.key_secret,
            self._redact,
            ttl=settings.key_ttl,
            timeout=self._timeout,
            endpoint=settings.secretmanager_endpoint,
            credentials=given,
        )

    def _queues(self, key: SecretKey) -> WandbQueue:
        settings = self._settings
        timeouts = settings.timeouts.model_copy(update={"read": min(settings.timeouts.read, PATIENCE)})
        return WandbQueue(settings.base_url, key, timeouts, settings.batches, version=__version__)

    def _jobs(self, given: Credentials | None) -> VertexJobs:
        settings = self._settings
        return VertexJobs(
            settings.project,
            settings.deployment,
            timeout=self._timeout,
            endpoint=settings.aiplatform_endpoint,
            credentials=given,
        )

    def _projects(self, given: Credentials | None) -> ProjectRights:
        return ProjectRights(Rest(PROJECTS, self._endpoints.cloudresourcemanager, given, timeout=self._timeout))

    def _accounts(self, given: Credentials | None) -> AccountRights:
        return AccountRights(Rest(ACCOUNTS, self._endpoints.iam, given, timeout=self._timeout))

    def _buckets(self, given: Credentials | None) -> BucketRights:
        client = Client(project=self._settings.project, credentials=given or AnonymousCredentials())
        return BucketRights(client, timeout=self._timeout)

    def _topics(self, given: Credentials | None) -> TopicRights:
        return TopicRights(PublisherClient(credentials=given), timeout=self._timeout)


def _silence() -> None:
    """Keep what the adapters log to themselves: the lines say it, and say it without the key."""
    LOGGER.addHandler(logging.NullHandler())
    LOGGER.propagate = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vertex_launch", description="vertex-launch, before it is deployed."
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="check the configuration and all that the functions will need",
        description="Check the configuration and all that the functions will need; nothing is changed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "--as",
        dest="account",
        type=_account,
        metavar="ACCOUNT",
        help="test the rights of this service account, by its email address, instead of your own; you need "
        "roles/iam.serviceAccountTokenCreator on it",
    )
    check.add_argument(
        "--function",
        type=Function,
        choices=list(Function),
        metavar="NAME",
        help=f"test only what this function needs: {', '.join(Function)}; without it that goes by the name of ACCOUNT, "
        "which ends with -dispatch, -now or -job-state, else all is tested",
    )
    return parser


def _account(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the email address of a service account")
    return text


if __name__ == "__main__":
    sys.exit(main())
