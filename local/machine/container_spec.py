"""Turn a worker pool into argv and environment, as Kubernetes does for a container. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` with the variable's value and ``$$`` with ``$``. Keep references to missing variables."""

    def replacement(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return variables.get(match.group(1), match.group())

    return _REFERENCE.sub(replacement, text)


def environment(declared: Iterable[Any], service: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a container: the service's, then the declared ones (EnvVar) in order.

    A value can refer to earlier variables. If two variables have one name, the last one counts.
    """
    variables = dict(service)
    for variable in declared:
        variables[variable.name] = expand(variable.value, variables)
    return variables


def command_line(
    entrypoint: Sequence[str],
    cmd: Sequence[str],
    command: Sequence[str],
    args: Sequence[str],
    variables: Mapping[str, str],
) -> list[str]:
    """Return argv of a container whose image has ``entrypoint`` and ``cmd``.

    ``command`` replaces both, ``args`` replaces only ``cmd``.
    """
    head = command or entrypoint
    tail = args or (() if command else cmd)
    return [expand(part, variables) for part in (*head, *tail)]


def task(pool: Any) -> tuple[str, Sequence[str], Sequence[str], Iterable[Any]]:
    """Return image, command, args and env of a worker pool. ``python -m`` starts a Python package."""
    if pool.WhichOneof("task") == "container_spec":
        container = pool.container_spec
        return container.image_uri, container.command, container.args, container.env
    package = pool.python_package_spec
    return package.executor_image_uri, ("python", "-m", package.python_module), package.args, package.env


def account(job: Any) -> str:
    """Return the service account that a job's containers act as.

    The default is the project's Vertex AI Custom Code Service Agent (see CustomJobSpec.service_account).
    """
    number = job.name.split("/")[1]
    named: str = job.job_spec.service_account
    return named or f"service-{number}@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"


def service_variables(job: Any, project_number: str) -> dict[str, str]:
    """Return the variables that Vertex AI sets in the containers of a job."""
    variables = {"CLOUD_ML_PROJECT_ID": project_number, "CLOUD_ML_JOB_ID": job.name.rsplit("/", 1)[1]}
    output = job.job_spec.base_output_directory.output_uri_prefix
    if output:
        base = output.rstrip("/")
        variables["AIP_MODEL_DIR"] = f"{base}/model/"
        variables["AIP_CHECKPOINT_DIR"] = f"{base}/checkpoints/"
        variables["AIP_TENSORBOARD_LOG_DIR"] = f"{base}/logs/"
    return variables
