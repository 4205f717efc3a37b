"""Where a job, which has no SSH key, finds over HTTPS what its author reached over SSH. Pure; the functions use it as well."""

from __future__ import annotations

import re
from collections.abc import Mapping

SAME = {  # hosts of SSH alone
    "ssh.github.com": "github.com",
    "altssh.gitlab.com": "gitlab.com",
    "altssh.bitbucket.org": "bitbucket.org",
    "ssh.gitlab.gnome.org": "gitlab.gnome.org",
    "hf.co": "huggingface.co",
}
AZURE = ("ssh.dev.azure.com", "vs-ssh.visualstudio.com")
DATA_CENTER = re.compile(r"(?:bitbucket|stash)\.(?!org\Z).*")  # Bitbucket Data Center, which clones below /scm
DATA_CENTER_PORT = "7999"
NAME_OF_HOST = re.compile(r"(?:.+\.(?:[a-z]{2,}|xn--[a-z0-9-]+|\d+)|localhost)\.?", re.IGNORECASE)

# Stricter than any other parser of addresses, so that no two of them see different hosts in the same address.
URL_FORM = re.compile(r"(https?|ssh)://(?:([^/@]*)@)?([A-Za-z0-9._-]*)(:\d+)?(/.*)")
SCP_FORM = re.compile(r"(?:([\w.+-]+)@)?([A-Za-z0-9._-]+):(?!//)/*(.+)", re.ASCII)
ELSEWHERE = re.compile(r"file:.*|[/~.].*|[A-Za-z]:.*|\\.*|[^:]*", re.DOTALL)  # C: is a drive
HELPER = re.compile(r"[\w+-]+::.*", re.DOTALL)


class NoRemote(ValueError):
    """No job can fetch from an address. ``is_far`` if the address means something on its author's computer alone."""

    def __init__(self, text: str, is_far: bool = False) -> None:
        super().__init__(text)
        self.is_far = is_far


def remote_url(remote: str, bases: Mapping[str, str], known: tuple[str, ...] = ()) -> tuple[str, bool]:
    """Return a repository's address as a URL that a job can fetch from, and whether it was one for SSH. Raises NoRemote.

    ``bases`` maps hosts of SSH to the URLs that their paths belong to; ``known`` are hosts that need not look like one.
    """
    text = remote.strip()
    is_plain = not re.search(r"[\s?#\\\x00-\x1f]", text)
    url, scp = URL_FORM.fullmatch(text), SCP_FORM.fullmatch(text)
    # Addresses are not quoted: any part of them may be a token.
    if HELPER.fullmatch(text):
        raise NoRemote(
            "its remote needs a remote helper of git (NAME::ADDRESS), which a job does not have", is_far=True
        )
    if text.startswith("-") or not (is_plain or ELSEWHERE.fullmatch(text)):
        raise NoRemote("its remote is not of the form https://HOST/PATH or git@HOST:PATH")
    if is_plain and url and url[1] != "ssh" and url[3]:
        return text, False
    if is_plain and url and url[1] == "ssh":
        return over_https(url[2] or "", url[3], (url[4] or "")[1:], url[5].strip("/"), bases, known), True
    if ELSEWHERE.fullmatch(text):
        raise NoRemote("its remote is a path on the computer where the job was made", is_far=True)
    if is_plain and scp and "@" not in scp[3]:
        return over_https(scp[1] or "", scp[2], "", scp[3], bases, known), True
    raise NoRemote("its remote is not of the form https://HOST/PATH or git@HOST:PATH")


def over_https(user: str, host: str, port: str, path: str, bases: Mapping[str, str], known: tuple[str, ...]) -> str:
    """Return the URL of a repository on a host of SSH. Raises NoRemote if that is not the name of a host."""
    lower, parts = host.lower(), path.split("/")
    base = bases.get(f"{lower}:{port or 22}") or bases.get(lower)
    if base:
        return f"{base.rstrip('/')}/{path}"
    if lower in AZURE and parts[0] == "v3" and len(parts) == 4:
        return "https://dev.azure.com/{1}/{2}/_git/{3}".format(*parts)
    if lower.endswith(".visualstudio.com") and "_ssh" in parts:
        organization = user if lower in AZURE else host.partition(".")[0]
        return f"https://{organization}.visualstudio.com/{path.replace('_ssh/', '_git/')}"
    if lower not in known and not NAME_OF_HOST.fullmatch(lower):
        name = f" {host}" if len(host) < (40 if "." in host else 16) else ""  # a longer one may be a token
        raise NoRemote(
            f"its remote has the SSH host{name}, which looks like an alias of its author's ssh_config", is_far=True
        )
    if (port == DATA_CENTER_PORT or DATA_CENTER.fullmatch(lower)) and parts[0] != "scm":
        path = f"scm/{path}"
    return f"https://{SAME.get(lower, host)}/{path}"
