"""The permissions of each account: exactly those that the functions use, which every way of deploying must grant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

PROJECT, JOB_ACCOUNT, SECRET, RECORD, TICKS = "project", "job account", "secret", "record", "ticks"
"""The resources on which permissions are needed. CustomJobs have no policy of their own, so theirs are the project's."""

DISPATCH = {
    (PROJECT, "aiplatform.customJobs.cancel"),
    (PROJECT, "aiplatform.customJobs.create"),
    (PROJECT, "aiplatform.customJobs.get"),
    (PROJECT, "aiplatform.customJobs.list"),
    (JOB_ACCOUNT, "iam.serviceAccounts.actAs"),
    (SECRET, "secretmanager.versions.access"),
    (RECORD, "storage.objects.create"),
    (RECORD, "storage.objects.delete"),
    (RECORD, "storage.objects.get"),
    (RECORD, "storage.objects.list"),
}
NEEDED = {
    "dispatch": DISPATCH,
    "dispatch_now": DISPATCH,
    "job_state": {(PROJECT, "aiplatform.customJobs.get"), (TICKS, "pubsub.topics.publish")},
}
"""By function. ``tests/loopback/test_permissions.py`` shows that each of them is used, and no others."""

LOG_LINES = {(PROJECT, "logging.logEntries.list")}
"""What ``dispatch`` and ``dispatch_now`` also need if ``log_lines`` asks for the output of failed jobs."""

OF_CALLS: Mapping[str, tuple[str, str]] = {
    "CreateCustomJob": (PROJECT, "aiplatform.customJobs.create"),
    "ListCustomJobs": (PROJECT, "aiplatform.customJobs.list"),
    "GetCustomJob": (PROJECT, "aiplatform.customJobs.get"),
    "CancelCustomJob": (PROJECT, "aiplatform.customJobs.cancel"),
    "AccessSecretVersion": (SECRET, "secretmanager.versions.access"),
    "ListLogEntries": (PROJECT, "logging.logEntries.list"),
    "Publish": (TICKS, "pubsub.topics.publish"),
    "storage.download": (RECORD, "storage.objects.get"),
    "storage.get": (RECORD, "storage.objects.get"),
    "storage.insert": (RECORD, "storage.objects.create"),
}
"""The permission that each call is checked for, from the services' documentation of access control."""

OF_ROLES: Mapping[str, set[str]] = {
    "roles/secretmanager.secretAccessor": {"secretmanager.versions.access"},
    "roles/pubsub.publisher": {"pubsub.topics.publish"},
    "roles/iam.serviceAccountUser": {"iam.serviceAccounts.actAs"},
}
"""Which of them predefined roles hold, from https://cloud.google.com/iam/docs/roles-permissions."""

ACCOUNTS = {"dispatch": "dispatch", "dispatch_now": "now", "job_state": "job-state"}
"""The end of the name of each function's account."""

_KINDS = {
    "service": JOB_ACCOUNT,
    "secret": SECRET,
    "bucket": RECORD,
    "storage/b/": RECORD,
    "topic": TICKS,
    "project": PROJECT,
}


def granted(
    bindings: Iterable[tuple[str, str, str]], roles: Mapping[str, Collection[str]], account: str
) -> set[tuple[str, str]]:
    """Return an account's permissions from bindings (on what, role, member) and the permissions of custom roles by name."""
    mine = [(on, role) for on, role, member in bindings if member.startswith(f"serviceAccount:{account}@")]
    return {(_kind(on), one) for on, role in mine for one in (roles.get(role) or OF_ROLES[role])}


def _kind(resource: str) -> str:
    """Return the kind of a resource from its name, such as ``topic`` for ``projects/P/topics/T``."""
    return next(kind for word, kind in _KINDS.items() if word in resource.lower())
