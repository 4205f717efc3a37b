"""Stable codes for everything that people are told: problems, rejections, deferrals, warnings and notices.

A code never changes its meaning. Each has an entry in ``docs/troubleshooting.md`` that says what it means and what to do.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Code(StrEnum):
    """One member for each kind of message; its value is ``VL-`` and its name with hyphens."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return f"VL-{name.replace('_', '-')}"

    NONE = auto()
    """For messages that have no code yet."""

    # Settings (settings/)
    CONFIG_FILE = auto()
    CONFIG_YAML = auto()
    CONFIG_PLACEHOLDER = auto()
    CONFIG_MISSING = auto()
    CONFIG_UNKNOWN = auto()
    CONFIG_VALUE = auto()
    CONFIG_CONFLICT = auto()
    CONFIG_API_KEY = auto()
    CONFIG_MACRO = auto()
    CONFIG_IGNORED = auto()
    CONFIG_NO_JOBS = auto()
    CONFIG_PLAIN_HTTP = auto()
    CONFIG_TIMEOUT = auto()

    # Requests and events
    CONFIG_INVALID = auto()
    CONFIG_TICK_TOPIC = auto()
    CREDENTIALS_MISSING = auto()
    REQUEST_INVALID = auto()
    REQUEST_METHOD = auto()
    REQUEST_SIZE = auto()
    REQUEST_JSON = auto()
    REQUEST_FORMAT = auto()
    REQUEST_KEY = auto()
    REQUEST_VALUE = auto()
    REQUEST_QUEUE = auto()
    REQUEST_RUN_SPEC = auto()
    REQUEST_JOB = auto()
    REQUEST_PROJECT = auto()
    REQUEST_REGION = auto()
    TICK_STALE = auto()
    TICK_SERVED = auto()
    PASS_BUSY = auto()
    PASS_LOST = auto()
    JOB_NOT_ENDED = auto()
    UNEXPECTED = auto()

    # Run specs and jobs (job/)
    SPEC_PROBLEMS = auto()
    SPEC_UNREADABLE = auto()
    SPEC_MISSING = auto()
    SPEC_UNKNOWN_KEY = auto()
    SPEC_VALUE = auto()
    SPEC_TEMPLATE = auto()
    SPEC_CONFLICT = auto()
    SPEC_LABEL = auto()
    SPEC_RESOURCE = auto()
    SPEC_PROJECT = auto()
    SPEC_REGION = auto()
    SPEC_CREDENTIALS = auto()
    SPEC_IMAGE_HOST = auto()
    SPEC_COMMAND = auto()
    SPEC_UNUSED_IMAGE = auto()
    SPEC_ENV_LIMIT = auto()
    SPEC_ENV_IGNORED = auto()
    SPEC_KEY = auto()
    SPEC_SERVICE_ACCOUNT = auto()
    POLICY_ENTRY_POINT = auto()
    POLICY_SERVICE_ACCOUNT = auto()
    POLICY_NETWORK = auto()
    POLICY_IMAGE = auto()
    POLICY_MACHINE_TYPE = auto()
    POLICY_ACCELERATOR = auto()
    POLICY_REPLICAS = auto()
    ARTIFACT_INVALID = auto()
    ARTIFACT_DOCKERFILE = auto()
    ARTIFACT_PASSWORD = auto()
    ARTIFACT_UNAVAILABLE = auto()
    SWEEP_PENDING = auto()
    SWEEP_MISSING = auto()
    SWEEP_ENDED = auto()
    SWEEP_UNAVAILABLE = auto()
    JOB_MEMORY = auto()
    JOB_PREEMPTED = auto()
    JOB_EXIT = auto()
    JOB_IMAGE = auto()
    JOB_STOCKOUT = auto()
    JOB_INTERNAL = auto()
    JOB_ACT_AS = auto()
    JOB_QUOTA = auto()
    JOB_PERMISSION = auto()
    JOB_EXPIRED = auto()
    JOB_PARTIAL = auto()
    JOB_FAILED = auto()
    JOB_NO_RUN = auto()
    JOB_CANCELLED = auto()

    # A pass (dispatch/, state/)

    # Services (adapters/)

    # The preflight (preflight/)
    CHECK_BUCKET = auto()
    CHECK_CONFIG = auto()
    CHECK_CONNECTION = auto()
    CHECK_CREDENTIALS = auto()
    CHECK_ENDPOINT = auto()
    CHECK_ENTITY = auto()
    CHECK_EXTRA = auto()
    CHECK_IDENTITY = auto()
    CHECK_ITEM = auto()
    CHECK_LOGS = auto()
    CHECK_MISSING = auto()
    CHECK_PERMISSION = auto()
    CHECK_QUEUE = auto()
    CHECK_REGION = auto()
    CHECK_TOPIC = auto()
    CHECK_UNVERIFIED = auto()
