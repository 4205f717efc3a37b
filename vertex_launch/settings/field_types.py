"""Types of single settings: names, addresses, durations. Each refusal says what was found and what to write.

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

from vertex_launch import addresses
from vertex_launch.codes import Code
from vertex_launch.problems import API_KEY, shown, wrong
from vertex_launch.settings.sources import REGIONS, STAGING, VARIABLES

PLACEHOLDER = re.compile(r"\bYOUR-[A-Z]+(?:-[A-Z]+)*\b")
"""What the shipped files hold in place of the user's own names."""

_OVERRIDES = {setting: variable for variable, setting in VARIABLES.items()} | {
    "name": REGIONS,
    "staging_bucket": STAGING,
}
"""The variables that override a field, the fields of a region included."""

_CREDENTIAL = re.compile(r"(^|_)KEY$|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def _no_bool(value: Any) -> Any:
    """Refuse ``max_jobs: yes``, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_text(value: Any) -> Any:
    """Refuse ``secure_mode: "no"``: the official agent reads any text as yes, pydantic reads this one as no."""
    if isinstance(value, str):
        raise PydanticKnownError("bool_type")
    return value


def _own(value: str, info: ValidationInfo) -> str:
    """Refuse a placeholder of the shipped files."""
    if found := PLACEHOLDER.search(value):
        variable = _OVERRIDES.get(info.field_name or "")
        remedy = f"Set {variable}, or replace it" if variable else "Replace it"
        raise wrong(f"{found[0]} is a placeholder", remedy, code=Code.CONFIG_PLACEHOLDER, about=True)
    return value


def _form(pattern: str, noun: str, remedy: str) -> AfterValidator:
    """Return a validator for text that has to match as a whole."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise wrong(f"{shown(value)} is not {noun}", remedy)
        return value

    return AfterValidator(check)


def _name(value: str) -> str:
    if API_KEY.fullmatch(value):
        remedy = "Write a name, store the key in Secret Manager, and set key_secret"
        raise wrong("looks like a W&B API key", remedy, code=Code.CONFIG_API_KEY)
    if value != value.strip() or not value:
        raise wrong(f"{shown(value)} is empty or has spaces around it", "Write the name without surrounding spaces")
    return value


def _region(value: str) -> str:
    if zone := re.fullmatch(r"([a-z]+-[a-z]+\d+)-[a-z]", value):
        raise wrong(f"{shown(value)} is a zone, not a region", f"Write {zone[1]}; Vertex AI chooses the zone")
    if not re.fullmatch(r"[a-z]+(-[a-z]+)+\d+", value):
        raise wrong(f"{shown(value)} is not a region", "Write a Google Cloud region, such as us-central1")
    return value


def _secret(value: str) -> str:
    bare = r"projects/[^/\s]+/(locations/[a-z0-9-]+/)?secrets/[A-Za-z0-9_-]+"
    if re.fullmatch(rf"{bare}/versions/[A-Za-z0-9_-]+", value):
        return value
    if re.fullmatch(bare, value):
        raise wrong("names a secret without a version", f"Append /versions/latest: {value}/versions/latest")
    # Anything else may be the key itself, so it is not repeated.
    remedy = "Write the name, not the secret itself: projects/my-project/secrets/wandb-api-key/versions/latest"
    raise wrong("is not the name of a secret version", remedy)


def _base_url(value: str) -> str:
    example = f"Write the server's URL, such as {addresses.default()}"
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        raise wrong("is not a URL", example) from None
    if "@" in value:
        raise wrong("contains a user name or a password", f"{example}; the key comes from Secret Manager")
    if not usable or url.query or url.fragment or re.search(r"\s", value):
        raise wrong(f"{shown(value)} is not an http or https URL", example)
    address, host = value.rstrip("/"), (url.hostname or "").removesuffix(".")
    if host in addresses.FORGE:
        if (url.scheme, url.port, url.path.rstrip("/")) == ("https", None, addresses.FORGE_PATH):
            return f"https://api.{host}"
        raise wrong(f"{shown(value)} is the W&B app, not its API", f"Write https://api.{host}")
    if address.endswith("/graphql"):
        raise wrong("is the URL of the GraphQL API", f"Remove /graphql: {address.removesuffix('/graphql')}")
    if host in ("wandb.ai", "www.wandb.ai", "app.wandb.ai", *(f"www.{forge}" for forge in addresses.FORGE)):
        raise wrong(f"{shown(value)} is the W&B website, not its API", f"Write {addresses.default()}")
    if addresses.is_cloud(host) and url.scheme == "http":
        raise wrong(f"{shown(value)} would send the API key unencrypted", f"Write https://{host}")
    return address


def _endpoint(value: str) -> str:
    address = value.removeprefix("https://").rstrip("/")
    if not re.fullmatch(r"(http://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", address):
        remedy = "Write a host, or http://127.0.0.1:8080 for plaintext without credentials"
        raise wrong(f"{shown(value)} is not a host or host:port", remedy)
    return address


def _macro(value: str, info: ValidationInfo) -> str:
    """Check the name of a variable and, if the environment is the validation context, that it is set there."""
    if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
        raise wrong(f"{shown(value)} is not the name of an environment variable", "Write a name such as TEAM_BUCKET")
    environ: Mapping[str, str] | None = info.context
    if _CREDENTIAL.search(value) or (environ and API_KEY.search(environ.get(value, ""))):
        found = f"{value} looks like a credential, and everyone who can see a job can read what a macro inserts"
        remedy = "Remove it, and let jobs read secrets from Secret Manager as their service account"
        raise wrong(found, remedy, code=Code.CONFIG_MACRO)
    if environ is not None and value not in environ:
        remedy = f"Set {value} for the function, or remove it from the list"
        raise wrong(f"{value} is not set in the environment", remedy, code=Code.CONFIG_MACRO)
    return value


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names that are listed more than once."""
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise wrong(f"{', '.join(map(shown, twice))} is listed more than once", "List each name once")
    return values


Count = Annotated[int, BeforeValidator(_no_bool)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Flag = Annotated[bool, BeforeValidator(_no_text)]
Text = Annotated[str, AfterValidator(_own)]
HeaderText = Annotated[Text, Field(max_length=200, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Name = Annotated[Text, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], AfterValidator(distinct)]
Bucket = Annotated[
    Text,
    _form(
        r"gs://[a-z0-9][a-z0-9._-]*[a-z0-9](/[^\s?#]*)?",
        "a Cloud Storage path",
        "Write gs://my-bucket or gs://my-bucket/folder, with the bucket in lowercase",
    ),
    AfterValidator(lambda value: value.rstrip("/")),
]
SecretVersion = Annotated[Text, AfterValidator(_secret)]
RegionName = Annotated[Text, AfterValidator(_region)]
BaseUrl = Annotated[Text, AfterValidator(_base_url)]
Endpoint = Annotated[Text, AfterValidator(_endpoint)]
Macro = Annotated[str, AfterValidator(_macro)]
"""The name of an environment variable. With the environment as validation context, it must be set there."""
_ID = "[a-z0-9]([a-z0-9-]{}[a-z0-9])?"
# Google decides how long a project id may be.
ProjectId = Annotated[Text, _form(rf"([a-z0-9.-]+:)?{_ID.format('*')}", "a project id", "Write the id, not the name")]
Topic = Annotated[
    Text, _form(r"projects/[^/\s]+/topics/[\w.~+%-]+", "a topic", "Write projects/my-project/topics/ticks")
]
Account = Annotated[
    Text,
    _form(
        r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com",
        "the email of a service account",
        "Write it without a prefix, such as jobs@my-project.iam.gserviceaccount.com",
    ),
]
Deployment = Annotated[
    Text, _form(_ID.format("{0,38}"), "a valid deployment name", "Write up to 40 lowercase letters, digits and hyphens")
]
Host = Annotated[
    str,
    AfterValidator(str.lower),
    _form(r"[a-z0-9._-]+(:[0-9]{1,5})?", "a host", "Write the host alone, such as github.com, or HOST:PORT"),
]
GitBase = Annotated[
    Text,
    _form(
        r"https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[^\s?#@\\]*)?",
        "a URL of a git host",
        "Write https://HOST or https://HOST/PATH",
    ),
    AfterValidator(lambda value: value.rstrip("/")),
]
Archive = Annotated[
    Text,
    _form(
        r"https?://(?=.*\{commit\})([^{}\s]|\{(path|owner|name|commit)\})+",
        "the address of an archive",
        "Write a URL with {commit}, and with {path} or {owner} and {name}",
    ),
]
