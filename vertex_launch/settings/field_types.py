"""The forms of single settings: names, addresses, durations; each refusal says what was found and what to write.

Called by ``config``, whose fields have these types.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticKnownError

from vertex_launch.problems import API_KEY, shown, wrong

_CREDENTIAL = re.compile(r"(^|_)KEY$|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def _no_bool(value: Any) -> Any:
    """Refuse ``max_jobs: yes``, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_text(value: Any) -> Any:
    """Refuse ``secure_mode: "no"``: the official agent takes any text for yes, pydantic this one for no."""
    if isinstance(value, str):
        raise PydanticKnownError("bool_type")
    return value


def _form(pattern: str, noun: str, remedy: str) -> AfterValidator:
    """Make a validator for text that has to match as a whole."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise wrong(f"{shown(value)} is not {noun}", remedy)
        return value

    return AfterValidator(check)


def _name(value: str) -> str:
    if API_KEY.fullmatch(value):
        raise wrong("looks like a W&B API key", "Write a name; the key belongs in Secret Manager, see key_secret")
    if value != value.strip() or not value:
        raise wrong(
            f"{shown(value)} is empty or has spaces around it", "Write the name alone, without spaces around it"
        )
    return value


def _region(value: str) -> str:
    if zone := re.fullmatch(r"([a-z]+-[a-z]+\d+)-[a-z]", value):
        raise wrong(f"{shown(value)} is a zone", f"Write its region, {zone[1]}; Vertex AI chooses the zone")
    if not re.fullmatch(r"[a-z]+(-[a-z]+)+\d+", value):
        raise wrong(f"{shown(value)} is not a region", "Write a Google Cloud region, as us-central1")
    return value


def _bucket(value: str) -> str:
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]*[a-z0-9](/[^\s?#]*)?", value):
        remedy = "Write it as gs://my-bucket or gs://my-bucket/folder, in small letters"
        raise wrong(f"{shown(value)} is not the address of a bucket", remedy)
    return value.rstrip("/")


def _secret(value: str) -> str:
    bare = r"projects/[^/\s]+/secrets/[A-Za-z0-9_-]+"
    if re.fullmatch(rf"{bare}/versions/[A-Za-z0-9_-]+", value):
        return value
    if re.fullmatch(bare, value):
        raise wrong("names a secret without its version", f"Append /versions/latest: {value}/versions/latest")
    # What else stands here may be the key itself, so it is not repeated.
    remedy = "Write where the key is, not the key: projects/my-project/secrets/wandb-api-key/versions/latest"
    raise wrong("is not the name of a secret version", remedy)


def _base_url(value: str) -> str:
    example = "Write the server's address, as https://api.wandb.ai"
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        raise wrong("is not an address", example) from None
    if "@" in value:
        raise wrong("holds a user name or a password", f"{example}; the key comes from Secret Manager")
    if not usable or url.query or url.fragment or re.search(r"\s", value):
        raise wrong(f"{shown(value)} is not an http or https address", example)
    address = value.rstrip("/")
    if address.endswith("/graphql"):
        raise wrong("is the address of the GraphQL API", f"Leave /graphql out: {address.removesuffix('/graphql')}")
    if url.hostname in ("wandb.ai", "www.wandb.ai", "app.wandb.ai"):
        raise wrong(f"{shown(value)} is the website, not the API", "Write https://api.wandb.ai")
    return address


def _endpoint(value: str) -> str:
    address = value.removeprefix("https://").rstrip("/")
    if not re.fullmatch(r"(http://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", address):
        remedy = (
            "Write us-central1-aiplatform.googleapis.com, or http://127.0.0.1:8080 for plaintext without credentials"
        )
        raise wrong(f"{shown(value)} is not host or host:port", remedy)
    return address


def _macro(value: str, info: ValidationInfo) -> str:
    """Check the name of a variable, and with the environment at hand that it is set."""
    if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
        raise wrong(f"{shown(value)} is not the name of an environment variable", "Write the bare name, as TEAM_BUCKET")
    environ: Mapping[str, str] | None = info.context
    if _CREDENTIAL.search(value) or (environ and API_KEY.search(environ.get(value, ""))):
        found = f"{value} looks like a credential, and what macros insert can be read by all who see the job"
        raise wrong(found, "Remove it; let jobs read their secrets from Secret Manager as their service account")
    if environ is not None and value not in environ:
        raise wrong(f"{value} is not set in the environment", f"Set {value} for the function, or remove it here")
    return value


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names that are given more than once."""
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise wrong(f"{', '.join(map(shown, twice))} stands there more than once", "Name each one once")
    return values


Count = Annotated[int, BeforeValidator(_no_bool)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Flag = Annotated[bool, BeforeValidator(_no_text)]
Name = Annotated[str, AfterValidator(_name)]
Bucket = Annotated[str, AfterValidator(_bucket)]
# How long a project's id may be is left to Google.
ProjectId = Annotated[
    str,
    _form(
        r"([a-z0-9.-]+:)?[a-z0-9]([a-z0-9-]*[a-z0-9])?", "a project id", "Write the id, not the name: my-project-123"
    ),
]
Topic = Annotated[
    str,
    _form(r"projects/[^/\s]+/topics/[\w.~+%-]+", "the name of a topic", "Write it as projects/my-project/topics/ticks"),
]
Deployment = Annotated[
    str,
    _form(
        r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
        "the name of a deployment",
        "Write up to 40 small letters, digits and hyphens, as team-a",
    ),
]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Region = Annotated[str, AfterValidator(_region)]
SecretVersion = Annotated[str, AfterValidator(_secret)]
Host = Annotated[
    str,
    AfterValidator(str.lower),
    _form(r"[a-z0-9._-]+", "the name of a host", "Write it alone, as github.com, without https:// and path"),
]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Macro = Annotated[str, AfterValidator(_macro)]
"""The name of an environment variable; with the environment as validation context, one that is set there."""
Names = Annotated[tuple[Name, ...], AfterValidator(distinct)]
