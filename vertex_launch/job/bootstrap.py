"""Start the program in the container of a job whose code is not in its image, or whose W&B key is not in its spec.

``boot`` passes this text to ``python3 -c``, followed by the program and its arguments, and the plan in VERTEX_LAUNCH_PLAN. It
reads the key, fetches the code, installs its requirements and becomes the program, so that signals and the exit status are the
program's own. It needs only Python 3.8. Each step logs what it does. A step that fails logs the remedy and exits with status 1.

The kernel takes 128 KiB in one argument. Vertex AI documents no limit, but it expands dollars, so this text has none.
"""

# ruff: noqa: E402, S310, S603 - imports follow the path; URLs and commands are our own, and no shell is involved
from __future__ import annotations

import sys

# `python -c` searches the current folder for modules first, and an image can have a json.py there.
sys.path[:] = filter(None, sys.path)

import ast
import base64
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, quote_plus, unquote, urlsplit

PLAN = "VERTEX_LAUNCH_PLAN"
KEY = "WANDB_API_KEY"
WANDB = "0.31.0"  # the deployment's own, see requirements.txt
NO_PIP = "No module named pip"
# Like `python -m pip`, but without the folder of the code on the path.
RUN_PIP = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_module('pip', None, '__main__', True)"
)

FETCH = """
import json, re, sys
try:
    import wandb
    if not (hasattr(wandb.Api, "_artifact_from_id") or hasattr(wandb.Artifact, "_from_id")):
        raise ImportError("it is too old")
except Exception as error:
    print("the image has no usable wandb:", error)
    sys.exit(77)
try:
    api = wandb.Api()
    by_id = getattr(api, "_artifact_from_id", None) or (lambda id: wandb.Artifact._from_id(id, api.client))
    for name, folder in json.loads(sys.argv[1]).items():
        id = re.match("wandb-artifact://_id/([^/]+)", name)
        artifact = by_id(id.group(1)) if id else api.artifact(name.split("wandb-artifact://")[-1])
        if artifact is None or str(getattr(artifact, "state", "")).upper().endswith("DELETED"):
            raise ValueError(name + (" has been deleted" if artifact else " was not found"))
        artifact.download(root=folder)
except Exception as error:
    print(type(error).__name__ + ":", error)
    sys.exit(1)
"""

# Prints where packages go if the user may not write to those of this Python: the user's folder if possible, else argv[1].
USER_BASE = """
import os, site, sys, sysconfig
def can_write(path):
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return os.access(path, os.W_OK)
if not all(map(can_write, map(sysconfig.get_path, ("purelib", "platlib")))):
    print(site.getuserbase() if can_write(site.getuserbase()) else sys.argv[1])
"""

ARCHIVES = {
    "github.com": "https://github.com/{path}/archive/{commit}.tar.gz",
    "github.com with a token": "https://api.github.com/repos/{path}/tarball/{commit}",
    "gitlab.com": "https://gitlab.com/api/v4/projects/{quoted}/repository/archive.tar.gz?sha={commit}",
    "bitbucket.org": "https://bitbucket.org/{path}/get/{commit}.tar.gz",
}
USERS = {"github.com": "x-access-token", "bitbucket.org": "x-token-auth"}  # GitLab and others accept any user
NAMES = ("", "git", "oauth2", "x-access-token", "x-token-auth", "x-oauth-basic", "gitlab-ci-token")  # no secrets

PYTHON = re.compile(r"python(3(\.\d+)?)?")
LINE = re.compile(rb"[^\n]*\n|[^\n]+")
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(\[[^]]*\])?\s*([^;]*)(;.*)?")
PIN = re.compile(r"===?\s*[^,*\s]+\s*|@.+")
USER_OF_URL = re.compile(r"://([^/?#\s]*)@")
TRACES = re.compile("GIT_(TRACE_|TRACE2|TR2|CURL_VERBOSE).*")  # GIT_TRACE itself shows no header and no variable
OF_A_FILE = re.compile(r"(-r|--requirement|-c|--constraint|-f|--find-links|-e|--editable)[ =]*(.+)")
VARIABLE = re.compile(r"\x24\{([A-Z0-9_]+)\}")
TORCH = re.compile(r"torch(?:vision|audio)?==\d+\.\d+\.\d+(?:\+(cu\d+|cpu))?")
MAGIC = re.compile(r"(\s*)([%!?].*|[\w., ]+=\s*[%!].*|.*\?)")
TIMED = re.compile(r"(\s*)([\w., ]+=\s*)?%time(?:it)?\s+([^-%!\s].*)")
CELL_OF_PYTHON = re.compile(r"\s*%%(time|timeit|capture|prun)\b")

hidden: set[str] = set()
kept: set[str] = set()  # secrets that no other program may see in its environment
step = "plan"
children: list[subprocess.Popen[str]] = []


class Failed(Exception):
    """A step failed; the text says why and what to do. The documentation explains the code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def hide(*words: str) -> None:
    """Hide secrets from the log: as they are, in URLs and JSON, and in base64 of any text such as a basic-auth header."""
    for word in filter(None, words):
        hidden.update((word, quote(word, ""), quote(word), quote_plus(word), json.dumps(word)[1:-1]))
        data = word.encode(errors="surrogateescape")
        for before in range(3 if len(data) > 5 else 0):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                text = encode(bytes(before) + data).decode()
                # The first characters also hold bits of what stands before, and the last one of what follows.
                hidden.add(text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])


def masked(text: str) -> str:
    """Return text without secrets, and without users of URLs that may be tokens."""

    def user(match: re.Match[str]) -> str:
        name, colon, password = match[1].partition(":")
        is_name = name in NAMES or (password not in NAMES and len(name) < 16)
        return f"://{name if is_name else '***'}{':***' if colon else ''}@"

    for word in sorted(filter(None, hidden), key=len, reverse=True):
        text = text.replace(word, "***")
    return USER_OF_URL.sub(user, text)


def show(text: str) -> str:
    """Write text to the job's log without secrets, and return it so."""
    text = masked(text)
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.stdout.flush()
    return text


def say(name: str, text: str) -> None:
    """Log a line of the step ``name``."""
    global step
    step = name
    show(f"vertex-launch: {name}: {text}\n")


def warn(name: str, code: str, text: str) -> None:
    """Log a warning of the step ``name``."""
    say(name, f"warning [{code}]: {text}")


def shared() -> dict[str, str]:
    """Return the environment without the plan, the key, and whatever repeats a secret."""
    words = [word for word in kept if len(word) > 7]
    return {
        name: value
        for name, value in os.environ.items()
        if name not in (PLAN, KEY) and not any(word in value for word in words)
    }


def run(command: list[str], folder: Path, variables: dict[str, str], hush: bool = False) -> tuple[int, str]:
    """Run a command that sees no secrets but those in ``variables``, log its output, and return its status and output.

    ``hush`` switches git's traces of headers and variables off.
    """
    environment = {name: value for name, value in shared().items() if not (hush and TRACES.fullmatch(name))}
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment.update(variables)
    with subprocess.Popen(command, cwd=folder, env=environment, encoding="utf-8", errors="replace", **pipes) as child:
        children[:] = [child]
        output = "".join(map(show, child.stdout or ()))
    children.clear()
    return child.returncode, output


def pip(python: str, arguments: list[str], folder: Path, **variables: str) -> tuple[int, str]:
    """Run ``pip install``, even if the image's system manages its packages (PEP 668): this is only a container."""
    settings = {f"PIP_{name}": "1" for name in ("BREAK_SYSTEM_PACKAGES", "DISABLE_PIP_VERSION_CHECK", "NO_INPUT")}
    settings.update(PIP_PROGRESS_BAR="off", PIP_ROOT_USER_ACTION="ignore")  # older pips ignore unknown ones
    return run([python, "-c", RUN_PIP, "install", *arguments], folder, {**settings, **variables})


def end_of(output: str) -> str:
    """Return the last line of a command's output, which usually is the error."""
    return (output.strip().splitlines() or ["no output"])[-1]


def get(url: str, headers: dict[str, str], pause: float, into: Path | None = None) -> bytes:
    """Return the content of a URL, or write it ``into`` a file. Five tries, the second after ``pause`` s. Raises OSError."""
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a redirect must not carry a token to another host
    direct = [urllib.request.ProxyHandler({})] if "Metadata-Flavor" in headers else []  # never through a proxy
    for wait in (pause, 2 * pause, 4 * pause, 8 * pause, None):
        try:
            with urllib.request.build_opener(*direct).open(request, timeout=60) as response:
                if into is None:
                    return bytes(response.read())
                with into.open("wb") as file:
                    shutil.copyfileobj(response, file)
                return b""
        except (OSError, http.client.HTTPException) as error:
            if wait is None or (isinstance(error, urllib.error.HTTPError) and error.code != 429 and error.code < 500):
                raise error if isinstance(error, OSError) else OSError(repr(error)) from error
            time.sleep(wait)
    return b""


def secret(plan: dict[str, Any], version: str, what: str) -> str:
    """Read a secret as the job's own service account and hide it from the log. Raises Failed."""
    host, pause = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal", plan.get("retry_seconds", 1)
    identity = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/"
    flavor = {"Metadata-Flavor": "Google"}
    say("key", f"reading {what} from {version}")
    try:
        token = json.loads(get(identity + "token", flavor, pause))["access_token"]
        hide(token)
        account = get(identity + "email", flavor, pause).decode().strip()
    except (OSError, ValueError, KeyError) as error:
        raise Failed(
            "VL-BOOT-IDENTITY",
            f"the metadata server returned no access token ({error}), so {what} cannot be read from Secret Manager. "
            "Run the job on Vertex AI with a service_account in its spec",
        ) from error
    try:
        url = f"{plan['secretmanager'].rstrip('/')}/v1/{version}:access"
        data = json.loads(get(url, {"Authorization": f"Bearer {token}"}, pause))["payload"]["data"]
        text = base64.b64decode(data).decode("ascii").strip()
    except urllib.error.HTTPError as error:
        quoted = re.search(r'"message":\s*"([^"]*)', error.read().decode(errors="replace"))
        remedy = {
            403: "Grant the account roles/secretmanager.secretAccessor on that secret",
            404: "Add that version, or correct its name in the configuration",
        }.get(error.code, "Check that this version is enabled")
        reason = f"{error.code} {quoted[1] if quoted else error.reason}"
        raise Failed("VL-BOOT-SECRET", f"{account} cannot read {version} ({reason}). {remedy}") from error
    except UnicodeDecodeError:
        text = ""
    except (OSError, ValueError, KeyError) as error:
        found = f"Secret Manager did not return {version} ({error}). Check the network"
        raise Failed("VL-BOOT-SECRET", found) from error
    if not text or not text.isprintable() or " " in text:
        raise Failed("VL-BOOT-SECRET", f"{version} is not a single line of ASCII text. Add a version with only {what}")
    hide(text)
    kept.add(text)
    return text


def fetch_artifacts(wanted: dict[str, Path], key: str, private: Path) -> None:
    """Download artifacts with the image's own wandb, else with one from pip. Raises Failed.

    pip installs it into a private folder. In the program's environment it could change the versions of other packages, and
    hide that the program's requirements lack wandb.
    """
    names, folders = " and ".join(wanted), {name: str(folder) for name, folder in wanted.items()}
    command = [sys.executable, "-c", FETCH, json.dumps(folders)]
    variables = {f"WANDB_{kind}_DIR": str(private) for kind in ("CACHE", "CONFIG", "DATA")}  # HOME may not be writable
    variables[KEY] = key
    say("source", f"fetching {names}")
    status, output = run(command, private, variables)
    if status == 77:
        # Pythons before 3.10 get the newest version that still supports them.
        wandb = f"wandb{'==' if sys.version_info >= (3, 10) else '<='}{WANDB}"
        say("wandb", f"installing {wandb} into a private folder to fetch with it")
        variables["PYTHONPATH"] = str(private / "lib")
        status, output = pip(sys.executable, ["--target", variables["PYTHONPATH"], wandb], private, PIP_USER="0")
        if status:
            reason = "has no pip" if NO_PIP in output else f"pip cannot install {wandb} ({end_of(output)})"
            raise Failed(
                "VL-BOOT-WANDB",
                f"the image has no usable wandb and {reason}. Use a base image with wandb or pip, and check that the job "
                "can reach a package index (PIP_INDEX_URL sets a mirror)",
            )
        say("source", f"fetching {names} with that wandb")
        status, output = run(command, private, variables)
    if status:
        raise Failed(
            "VL-BOOT-ARTIFACT",
            f"{os.environ.get('WANDB_BASE_URL', 'W&B')} did not return {names} ({end_of(output)}). Check that the job and its "
            "code still exist and that the owner of the key may read their project",
        )


def fetch_repository(plan: dict[str, Any], code: Path, private: Path) -> None:
    """Check out the commit with git. Without git, unpack the archive of the repository's host. Raises Failed."""
    url, commit, pause = urlsplit(plan["remote"]), plan["commit"], plan.get("retry_seconds", 1)
    host, user, token = url.hostname or "", unquote(url.username or ""), unquote(url.password or "")
    if re.search(r"[\0\r\n]", user + token):
        raise Failed("VL-BOOT-GIT", f"the address of {host} has a control character in its credentials. Correct it")
    hide(*(word for word in (url.password or "", token) if word not in NAMES))
    if len(user) > (7 if token in NAMES else 15) and user not in NAMES:  # a shorter one is hidden in URLs only
        hide(url.username or "", user)
    plain = url.scheme == "http" and host not in ("127.0.0.1", "localhost")
    known = bool(token) or (user not in NAMES and not plain)
    url = url._replace(netloc=url.netloc.rpartition("@")[2])
    advice = "Check that the commit has been pushed"
    if plan.get("token_secret"):
        own, _, token = secret(plan, plan["token_secret"], "the token for git").rpartition(":")
        user, known = own or USERS.get(host) or user, True
        hide(token)
        kept.add(token)
        advice += f", and that the token in {plan['token_secret']} may read it"
    elif not token:
        advice += ". A private repository needs a token (git_token_secrets)"
    over = " over HTTPS, because a job has no SSH key" if plan.get("ssh") else ""
    say("source", f"fetching {commit} of {url.geturl()}{over}")
    if token and plain:
        raise Failed("VL-BOOT-GIT", f"the token must not be sent to {host} unencrypted. Use an https:// remote")
    if shutil.which("git"):
        checkout(url, commit, f"username={user or 'oauth2'}\npassword={token}" if known else "", code, pause, advice)
        return
    if known and token in ("", "x-oauth-basic"):  # the user is the token, or only a name
        user, token = "", user if len(user) > 15 else ""
    if host not in ARCHIVES:
        raise Failed("VL-BOOT-GIT", f"the image has no git to fetch from {host or url.geturl()}. Use an image with git")
    template = ARCHIVES.get(f"{host} with a token" if token else host, ARCHIVES[host])
    path = re.sub(r"\.git/*\Z", "", url.path).strip("/")
    address = template.format(path=quote(path), quoted=quote(path, ""), commit=quote(commit, ""))
    headers = {"PRIVATE-TOKEN": token} if host == "gitlab.com" else {"Authorization": f"Bearer {token}"}
    if host == "bitbucket.org" and user != USERS[host]:  # app passwords need their user, access tokens do not
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}
    say("source", f"the image has no git, unpacking {address}")
    try:
        get(address, headers if token else {}, pause, private / "archive")
        unpack(private / "archive", code)
    except Failed as error:
        remedy = "Use an image with git, or remove that from the repository"
        raise Failed("VL-BOOT-ARCHIVE", f"{address}: {error}. {remedy}") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise Failed("VL-BOOT-ARCHIVE", f"{address}: {error}. {advice}, or use an image with git") from error
    if (code / ".gitmodules").exists():
        warn("source", "VL-BOOT-ARCHIVE", "an archive has no submodules. Use an image with git if they are needed")


def checkout(url: SplitResult, commit: str, login: str, code: Path, pause: float, advice: str) -> None:
    """Fetch one commit with git, or all if the server does not allow that. Raises Failed."""
    base = ["git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60", "-c", "protocol.ext.allow=never"]
    base += ["-c", "http.followRedirects=initial"]
    variables = {"GIT_TERMINAL_PROMPT": "0"}
    if login:  # only for this host and port, and only in the environment; every git knows credential helpers
        name = f"VERTEX_LAUNCH_GIT_{os.urandom(8).hex()}"  # so that no configuration of traces can name it
        variables[name] = login
        base += ["-c", f"credential.{url.scheme}://{url.netloc}.helper=!printenv {name} #"]
    if url.scheme == "https":  # for submodules on the same host
        base += ["-c", f"url.https://{url.netloc}/.insteadOf=git@{url.hostname}:"]
        base += ["-c", f"url.https://{url.netloc}/.insteadOf=ssh://git@{url.hostname}/"]

    def git(*arguments: str) -> str:
        """Return the error, the empty text if there is none."""
        status, output = run([*base, *arguments], code, variables, hush=bool(login))
        first = re.search(r"(?:fatal|error): .*", output)
        return (first[0] if first else end_of(output)) if status else ""

    wanted, error = "FETCH_HEAD", git("init", "-q") or git("remote", "add", "origin", url.geturl())
    if not error and git("fetch", "-q", "--depth", "1", "origin", commit):
        say("source", "the server does not allow fetching a single commit; fetching the full history")
        time.sleep(pause)
        wanted, error = commit, git("fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
    error = error or git("checkout", "-q", "--detach", wanted)
    if error:
        raise Failed("VL-BOOT-GIT", f"git cannot check out {commit} of {url.geturl()} ({error}). {advice}")
    if (code / ".gitmodules").exists() and (error := git("submodule", "update", "--init", "--recursive")):
        raise Failed(
            "VL-BOOT-GIT",
            f"git cannot fetch the submodules of {url.geturl()} ({error}). Each must be reachable over HTTPS, and a token is "
            f"used only on {url.hostname}",
        )


def inside(root: Path, name: str, advice: str = "") -> Path:
    """Return a path in a folder. Raises Failed if it is outside of it, symbolic links resolved."""
    top = os.path.realpath(str(root))
    if os.path.commonpath([top, os.path.realpath(str(root / name))]) != top:
        raise Failed("VL-BOOT-PATH", f"{name} is outside of the code{advice}")
    return root / name


def unpack(archive: Path, code: Path) -> None:
    """Unpack a .tar.gz without its topmost folder. Raises Failed, OSError, TarError."""
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(str(archive), "r:gz") as tar:
        for member in tar:
            member.name = member.name.partition("/")[2]
            parent = inside(code, member.name).parent
            if member.issym():
                inside(code, str(parent / member.linkname))
            elif not (member.isfile() or member.isdir()):
                raise Failed("VL-BOOT-ARCHIVE", f"{member.name} is not a file, folder or symbolic link")
            if member.name:
                tar.extract(member, str(code), **safely)


def apply_patch(patch: bytes, code: Path) -> None:
    """Apply a ``git diff`` exactly, without git or patch, because a slim image has neither. Raises Failed."""
    parts = re.split(rb"^(?=diff --git )", patch + b"\n", flags=re.MULTILINE)[1:]
    say("patch", f"applying diff.patch to {len(parts)} files")
    for part in parts:
        head, *hunks = re.split(rb"^(?=@@ )", part, flags=re.MULTILINE)
        title = os.fsdecode(head.splitlines()[0])
        if b"\nBinary files " in head:
            warn("patch", "VL-BOOT-PATCH", f"{title}: skipped, because a patch does not contain binary files")
            continue
        try:
            patch_file(title, head, hunks, code)
        except (ValueError, LookupError, OSError) as error:
            remedy = "The patch does not fit the commit. Create the job again"
            raise Failed("VL-BOOT-PATCH", f"{title}: {error}. {remedy}") from error


def patch_file(title: str, head: bytes, hunks: list[bytes], code: Path) -> None:
    """Apply the part of a ``git diff`` for one file. Raises ValueError, LookupError, OSError, Failed."""
    links = "symbolic links and submodules cannot be patched. Commit and push the change, then create the job again"

    def path(sign: bytes, side: bytes, word: bytes) -> Path:
        """Return the path in one of the headers; if only a mode changes or a file is empty, only the title has it."""
        patterns = rb'^%s ("?)%s/(.*?)\1\t?\n' % (sign, side), rb'^(?:rename|copy) %s ("?)(.*)\1\n' % word
        for pattern in (*patterns, rb'^diff --git ("?)a/(.*)\1 \1b/\2\1\n'):
            found = re.search(pattern, head, re.MULTILINE)
            if found:
                name = ast.literal_eval(f'b"{found[2].decode()}"') if found[1] else found[2]
                place = inside(code, os.fsdecode(name))
                if any(part.is_symlink() for part in (place, *place.parents) if code in part.parents):
                    raise Failed("VL-BOOT-PATCH", f"{title}: it is a symbolic link or behind one, but {links}")
                return place
        raise ValueError("it does not name a file")

    if re.search(rb"^GIT binary|^index .* 1[26]0000|mode 1[26]0000", head, re.MULTILINE):
        raise Failed("VL-BOOT-PATCH", f"{title}: binary files, {links}")
    source, target = path(b"-{3}", b"a", b"from"), path(b"[+]{3}", b"b", b"to")
    old = [] if b"\nnew file" in head else LINE.findall(source.read_bytes())
    new, at = [], 0
    for hunk in hunks:
        range_of, *lines = LINE.findall(re.sub(rb"\n\\ [^\n]*", b"\0", hunk))  # "\ No newline at end of file"
        start, count = re.findall(rb"-(\d+)(?:,(\d+))?", range_of)[0]
        begin = int(start) - (count != b"0")
        new += old[at:begin]
        at = begin
        for line in lines:
            sign, text = line[:1], line[1:].replace(b"\0\n", b"")
            if sign in b" -":
                if old[at] != text:
                    raise ValueError(f"line {at + 1} differs from the patch")
                at += 1
            if sign in b" +":
                new.append(text)
    if b"\nrename from" in head or b"\ndeleted file" in head:
        source.unlink()
    if b"\ndeleted file" not in head:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(new + old[at:]))
        mode = re.search(rb"^new (?:file )?mode 100(\d+)", head, re.MULTILINE)
        if mode:
            target.chmod(int(mode[1], 8))


def find_room(python: str, work: Path) -> None:
    """Set a folder for packages, also for the program, if the user may not write to those of its Python."""
    command = [python, "-c", USER_BASE, str(work / "user")]
    base = subprocess.check_output(command, cwd=str(work / "private"), env=shared(), encoding="utf-8").strip()
    if base:
        os.environ.update(PYTHONUSERBASE=base, PATH=f"{base}/bin:{os.environ.get('PATH', os.defpath)}")


def read_requirements(path: Path, top: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Return the lines of a requirements file and of those that it refers to, without syntax that pip takes only in a file.

    pip runs in ``top`` and searches editable projects there, else beside the file like all other paths. ``above`` are the
    files that referred to this one.
    """
    if not path.is_file():
        warn("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} does not exist")
        return []
    if path.resolve() in above:
        return []
    data, lines, known = path.read_bytes(), [], shared()
    code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # PowerShell writes the first
    for raw in data.decode(code, "replace").replace("\r\n", "\n").replace("\\\n", " ").splitlines():
        line = re.sub(r"(\A|\s)#.*|\s--hash[ =]\S+|\A--require-hashes\b", "", raw).strip()
        if KEY in VARIABLE.findall(line):
            warn("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} refers to {KEY}, which pip does not get")
        line = VARIABLE.sub(lambda found: known.get(found[1], found[0]), line)
        hide(*(word for user in USER_OF_URL.findall(line) for word in user.split(":") if len(word) > 15))
        other = OF_A_FILE.fullmatch(line)
        if other and ":" not in other[2]:  # not a URL
            kind, near = other[1].strip("-")[0], path.parent / other[2]
            if kind == "r":
                lines += read_requirements(near, top, (*above, path.resolve()))
                continue
            if kind == "c" and not near.is_file():
                warn("requirements", "VL-BOOT-REQUIREMENTS", f"{near.name} does not exist")
                continue
            if kind == "e":
                line = line if (top / other[2]).exists() else f"-e {near}"
            elif near.exists():
                line = f"-{kind} {shlex.quote(str(near))}"
        lines += [line] if line else []
    return lines


def install_requirements(frozen: Path, code: Path, folder: Path, python: str) -> None:
    """Install what W&B's own bootstrap would. What fails is reported by name and is not fatal.

    That is the frozen list without dependencies, or the packages in the code's requirements.txt, in their frozen versions.
    ``wandb job create`` does not freeze: a list with open versions needs its dependencies, an empty one does not count.
    """
    lines, pins = read_requirements(frozen, folder), {}

    def name_of(match: re.Match[str]) -> str:
        return re.sub(r"[-_.]+", "-", match[1]).lower()

    for match in map(REQUIREMENT.fullmatch, lines):
        if match and PIN.fullmatch(match[3]):
            pins[name_of(match)] = match[3]
    alone = ["--no-deps"] if len(pins) == len(lines) else []
    errors = folder
    own = next((place / "requirements.txt" for place in (folder, code) if (place / "requirements.txt").is_file()), None)
    if own:
        folder = own.parent
        lines, alone = read_requirements(own, folder), []
        for index, match in enumerate(map(REQUIREMENT.fullmatch, lines)):
            if match and name_of(match) in pins:
                lines[index] = f"{match[1]}{match[2] or ''}{pins[name_of(match)]}{match[4] or ''}"
    elif not lines and (folder / "pyproject.toml").is_file():
        lines, alone = ["."], []
    options: list[str] = []
    torch: list[str] = []
    apart: list[str] = []  # if git fetches packages, pip does not report which one failed
    rest: list[str] = []
    for line in lines:
        variant = TORCH.match(line)
        if variant and variant[1]:
            options.append(f"--extra-index-url=https://download.pytorch.org/whl/{variant[1]}")
        if re.match("-(?!e|r|-editable|-requirement)", line):
            try:
                options += shlex.split(line)
            except ValueError as error:
                warn("requirements", "VL-BOOT-REQUIREMENTS", f"skipped: {line} ({error})")
        else:  # no index has development versions of wandb
            kind = torch if variant else apart if "git+" in line else rest
            kind.append(re.sub(r"\Awandb==.*dev.*", "wandb", line))
    say("requirements", f"installing {len(torch + apart + rest)} packages")
    failed = [line for some in (rest, apart) for line in install(some, [*options, *alone], python, folder)]
    failed += install(torch, options, python, folder)
    (errors / "_wandb_bootstrap_errors.json").write_text(json.dumps({"pip": list(map(masked, failed))}))
    if failed:
        lost = f"failed to install: {', '.join(failed)}; the program starts without them"
        warn("requirements", "VL-BOOT-REQUIREMENTS", lost)


def install(wanted: list[str], options: list[str], python: str, folder: Path) -> list[str]:
    """Install requirements and return those that failed. If pip refuses them together, try those that it names alone."""
    if not wanted:
        return []
    arguments = [word for line in wanted for word in (line.split(None, 1) if line.startswith("-") else [line])]
    status, output = pip(python, [*options, *arguments], folder)
    if status == 0:
        return []
    if len(wanted) == 1 or NO_PIP in output or "Retry(total=0" in output:  # the last: no index is reachable
        return wanted
    lines = re.findall(r".*(?:ERROR|error):.*", output) + re.findall(r"Collecting (.*)", output)[-1:]
    errors = set(re.findall(r"[\w.-]+", " ".join(lines)))
    named = [line for line in wanted if re.split(r"[^\w.-]", line)[0] in errors] or wanted
    parts = [[line for line in wanted if line not in named], *([line] for line in named)]
    return [line for part in parts for line in install(part, options, python, folder)]


def convert(notebook: Path) -> Path:
    """Write a notebook's code to a script beside it. Raises Failed.

    nbconvert turns magics into calls of IPython, which a program that Python runs does not have.
    """
    script = notebook.with_suffix(".py")
    if script.exists():
        script = Path(f"{notebook}.py")
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = f"{notebook.name} cannot be read as a notebook ({error!r}). Correct the entry point"
        raise Failed("VL-BOOT-NOTEBOOK", found) from error
    for index, text in enumerate(texts):
        try:
            compile(text, notebook.name, "exec")
        except (SyntaxError, ValueError):
            texts[index] = without_magics(text)
            try:
                compile(texts[index], notebook.name, "exec")
            except (SyntaxError, ValueError) as error:  # for example an `await` outside of functions
                found = f"code cell {index + 1} cannot run in a script ({error}). Change it in the notebook"
                warn("notebook", "VL-BOOT-NOTEBOOK", found)
    script.write_text("\n\n".join(texts) + "\n", "utf-8")
    say("notebook", f"{notebook.name} runs as {script.name}")
    return script


def without_magics(cell: str) -> str:
    """Return a cell in which lines that only IPython understands are comments, and log each."""
    lines = cell.split("\n")
    foreign = cell.lstrip().startswith("%%") and not CELL_OF_PYTHON.match(cell)
    for index, line in enumerate(lines):
        found, timed = MAGIC.fullmatch(line), TIMED.fullmatch(line)
        if timed and not foreign:
            warn("notebook", "VL-BOOT-NOTEBOOK", f"not timed: {line.strip()}")
            lines[index] = f"{timed[1]}{timed[2] or ''}{timed[3]}"
        elif line.strip() and (foreign or found):
            warn("notebook", "VL-BOOT-NOTEBOOK", f"skipped: {line.strip()}")
            lines[index] = f"{found[1] if found and not foreign else ''}pass  # {line.strip()}"
    return "\n".join(lines)


def prepare(plan: dict[str, Any], command: list[str], key: str) -> Path:
    """Fetch and prepare the code, and return the folder to start in. Raises Failed."""
    base = os.environ.get("VERTEX_LAUNCH_DIR") or tempfile.gettempdir()
    Path(base).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="vertex-launch-", dir=base))  # a new one at each start of the container
    code, job, private = work / "code", work / "job", work / "private"
    for place in (code, job, private):
        place.mkdir()
    wanted = {plan["job"]: job}
    if plan["source"] == "artifact":
        wanted[plan["artifact"]] = code
    fetch_artifacts(wanted, key, private)
    if plan["source"] == "repo":
        fetch_repository(plan, code, private)
    if (job / "diff.patch").is_file():
        apply_patch((job / "diff.patch").read_bytes(), code)
    say("folder", plan.get("working_dir") or "the code's own")
    folder = inside(code, plan.get("working_dir") or "", ". Correct overrides.working_dir")
    if not folder.is_dir():
        raise Failed("VL-BOOT-PATH", f"the code has no folder {plan['working_dir']}. Correct overrides.working_dir")
    python = shutil.which(command[0]) if PYTHON.fullmatch(command[0]) else None
    say("requirements", "reading what to install")
    try:
        find_room(python or sys.executable, work)
        install_requirements(job / "requirements.frozen.txt", code, folder, python or sys.executable)
    except Exception as error:  # noqa: BLE001 - the program may run without them
        warn("requirements", "VL-BOOT-REQUIREMENTS", f"not installed ({error!r}); the program starts without them")
    script = next((at for at, word in enumerate(command) if at and not word.startswith("-")), 0)
    is_python = PYTHON.fullmatch(Path(command[0]).name)
    for at, word in enumerate(command):  # `wandb job create` does not mark notebooks
        if word.endswith(".ipynb") and (plan.get("notebook") or (is_python and at == script)):
            say("notebook", "converting")
            notebook = inside(folder, word, ". Correct the entry point")
            command[at] = str(convert(notebook).relative_to(folder))
    for place in sorted({(folder / word).parent / "Dockerfile.wandb" for word in command}):
        if os.path.isfile(str(place)):  # noqa: PTH113 - a Path raises an error for a word that cannot be a name
            name = os.path.relpath(str(place), str(folder))
            found = f"{name} is not used, because this deployment does not build images. Build one, or set a base image"
            warn("folder", "VL-ARTIFACT-DOCKERFILE", found)
    # File overrides need no work: launch.manage_config_file in the program applies WANDB_LAUNCH_FILE_OVERRIDES, relative to
    # the folder in which it starts (wandb/sdk/launch/inputs/files.py).
    shutil.rmtree(str(private), ignore_errors=True)
    return folder


def start(command: list[str], folder: Path, key: str) -> None:
    """Become the program. Raises Failed."""
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}  # as in the images that W&B's builder makes
    del environment[PLAN]
    if key:
        environment[KEY] = key
    if PYTHON.fullmatch(command[0]) and not shutil.which(command[0]):
        say("start", f"the image has no {command[0]}, using {sys.executable} ({sys.version.split()[0]})")
        command[0] = sys.executable
    say("start", f"{shlex.join(command)} in {folder}")
    os.chdir(str(folder))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the program is the user's own
    except OSError as error:
        raise Failed(
            "VL-BOOT-COMMAND",
            f"{command[0]} cannot be started ({error.strerror}). Begin the entry point with a program in the image or an "
            "executable file in the code, for example `python train.py`",
        ) from error


def stop(*_: object) -> None:
    """End at once on SIGTERM, which the first process of a container ignores by default."""
    for child in children:
        child.terminate()
    os.write(1, f"vertex-launch: {step}: stopped by SIGTERM\n".encode())
    os._exit(143)


def main() -> None:
    """Do all steps. Raises Failed."""
    signal.signal(signal.SIGTERM, stop)
    plan = json.loads(os.environ[PLAN])
    key = os.environ.get(KEY, "")
    hide(key)
    kept.add(key)
    if plan.get("api_key_secret"):
        key = secret(plan, plan["api_key_secret"], "the W&B API key")
    command = sys.argv[1:]
    if not command:
        raise Failed("VL-BOOT-COMMAND", "there is no command to run. Create the job with an entry point")
    start(command, Path.cwd() if plan["source"] == "image" else prepare(plan, command, key), key)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        say(step, f"failed [{error.code}]: {error}.")
    except Exception:  # noqa: BLE001 - the log names the step of any error
        say(step, f"failed unexpectedly [VL-BOOT-ERROR]: {traceback.format_exc()}")
    sys.exit(1)
