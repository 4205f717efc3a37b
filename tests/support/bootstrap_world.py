"""What a job's container meets, on loopback: Google's servers, hosts of repositories, a package index, Pythons without packages.

The fake ``wandb`` is a wheel, as the real one is; its artifacts are folders in ``$STORE``.
"""

from __future__ import annotations

import base64
import datetime
import io
import ipaddress
import itertools
import json
import os
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from local.standins.web import Handler, WebServer
from tests.support.specs import SETTINGS
from vertex_launch.job import boot, job_source
from vertex_launch.model import JobArtifact

TEXT = boot.text()
KEY = "0123456789abcdef0123456789abcdef01234567"
ACCESS_TOKEN = "ya29.the-access-token"
ACCOUNT = "trainer@acme.iam.gserviceaccount.com"
SECRET = "projects/acme/secrets/wandb/versions/1"
PATIENCE = 400.0
"""Seconds after which a container hangs."""

FAKE_WANDB = """
import os, pathlib, shutil

class Artifact:
    def __init__(self, folder):
        self.folder = folder
        self.state = "DELETED" if (folder / ".deleted").exists() else "COMMITTED"

    def download(self, root):
        shutil.copytree(self.folder, root, dirs_exist_ok=True, symlinks=True)
        return root

class Api:
    def __init__(self):
        pathlib.Path(os.environ["WANDB_CACHE_DIR"], "cached").touch()
        if os.environ.get("WANDB_API_KEY") != "KEY":
            raise ValueError("401: the key is " + os.environ.get("WANDB_API_KEY", "missing"))

    def artifact(self, name, type=None):
        folder = pathlib.Path(os.environ["STORE"]) / name.replace("/", "%").replace(":", "%")
        if not folder.is_dir():
            raise ValueError("artifact " + name + " not found in " + os.environ["WANDB_BASE_URL"])
        return Artifact(folder)

    def _artifact_from_id(self, id):
        folder = pathlib.Path(os.environ["STORE"]) / ("id-" + id)
        return Artifact(folder) if folder.is_dir() else None
""".replace('"KEY"', repr(KEY))


# ---- Pythons and packages


def python(version: str) -> Path | None:
    """Find a Python by its minor version, as pyenv or the system has it."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = sorted(root.glob(f"versions/{version}.*/bin/python"), key=lambda path: path.parts)
    found = str(installed[-1]) if installed else shutil.which(f"python{version}")
    return Path(found) if found else None


def virtual_environment(version: str, folder: Path, pip: bool = True) -> Path:
    """Make an empty virtual environment; pip, as it comes with that Python, is unpacked into it: ensurepip takes seconds."""
    base = python(version)
    assert base is not None
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
    if pip:
        zipfile.ZipFile(pip_wheel(base)).extractall(packages(folder))
    return folder


def relocated(folder: Path, copied: bool = False) -> Path:
    """Make an installation of this Python that is not a virtual environment, and whose system manages its packages (PEP 668).

    ``copied``, it has its own library, for users who may not read the one of this Python; LD_LIBRARY_PATH must name its ``lib``.
    """
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    copy = folder / "lib" / library.name
    copy.mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name in ("site-packages", "dist-packages", "EXTERNALLY-MANAGED", "test", "__pycache__"):
            continue
        if not copied:
            (copy / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, copy / entry.name, ignore=shutil.ignore_patterns("__pycache__", "*.a"))
        else:
            shutil.copy2(entry, copy / entry.name)
    for entry in library.parent.glob("libpython*.so*") if copied else ():
        shutil.copy2(entry, folder / "lib")
    (copy / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=This system manages its packages itself.\n")
    (copy / "site-packages").mkdir()
    (folder / "bin").mkdir()
    binary = folder / "bin" / "python3"
    shutil.copy2(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"), binary)
    (folder / "bin" / "python").symlink_to("python3")
    zipfile.ZipFile(pip_wheel(binary)).extractall(copy / "site-packages")
    return folder


def pip_wheel(interpreter: Path) -> Path:
    """Return the newest pip that comes with a Python."""
    ask = "import ensurepip, os; print(os.path.dirname(ensurepip.__file__))"
    folder = subprocess.run([interpreter, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    return sorted(Path(folder, "_bundled").glob("pip-*.whl"))[-1]


def packages(environment: Path) -> Path:
    """Return the folder of a (virtual) environment's packages."""
    return next(environment.glob("lib/python*/site-packages"))


def wheel(
    folder: Path, name: str, version: str, code: str = "", requires: Sequence[str] = (), script: str = ""
) -> Path:
    """Build a wheel with one module; ``script`` is a program that calls its function of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": code or f"version = {version!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {name}:{script}\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(member, text)
    return path


# ---- Google


class Google(WebServer):
    """The metadata server and Secret Manager. ``secrets`` maps versions to their payload; ``faults`` come first, in order."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {SECRET: KEY.encode() + b"\n"}
        self.denied: set[str] = set()
        self.account = ACCOUNT
        self.faults: list[int] = []
        """A status each, 0 to hang up."""
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] | None = None
        """Done before an answer."""
        google = self

        class Answers(Handler):
            def serve(self) -> None:
                google.asked.append(self.path)
                if google.meanwhile:
                    google.meanwhile()
                if google.faults:
                    fault = google.faults.pop(0)
                    return self.answer(fault, b"trouble") if fault else self.hang_up()
                return google._answer(self)

        super().__init__(Answers)

    @property
    def host(self) -> str:
        """Its host and port."""
        return urlsplit(self.url).netloc

    def _answer(self, request: Handler) -> None:
        service_account = "/computeMetadata/v1/instance/service-accounts/default/"
        version = request.path.removeprefix("/v1/").removesuffix(":access")
        if request.path.startswith(service_account):
            if request.headers["Metadata-Flavor"] != "Google":
                return request.answer(403)
            if not self.account:
                return request.answer(404, b"no service account")
            if request.path.endswith("token"):
                return request.answer_json(200, {"access_token": ACCESS_TOKEN, "expires_in": 3599})
            return request.answer(200, self.account.encode())
        if request.headers["Authorization"] != f"Bearer {ACCESS_TOKEN}":
            return _refuse(request, 401, "Request had invalid authentication credentials.")
        if version in self.denied:
            # (It says more than it should: what is hidden is hidden also from there.)
            return _refuse(request, 403, f"Permission denied for {ACCESS_TOKEN}.")
        if version not in self.secrets:
            return _refuse(request, 404, f"Secret [{version}] not found or has no versions.")
        data = base64.b64encode(self.secrets[version]).decode()
        return request.answer_json(200, {"name": version, "payload": {"data": data, "dataCrc32c": "1"}})


def _refuse(request: Handler, status: int, message: str) -> None:
    request.answer_json(status, {"error": {"code": status, "message": message, "status": "REFUSED"}})


# ---- hosts of repositories and packages, by way of a proxy that is all of them


@dataclass
class Seen:
    """A request that a host got."""

    url: str
    headers: Mapping[str, str]


class Internet(WebServer):
    """An HTTPS proxy that itself is every host beyond it.

    ``pages`` maps URLs to what is there: bytes, or a URL to be redirected to; ``repositories`` maps URLs to bare repositories,
    and ``passwords`` those to the user and password they want.
    """

    HOSTS = (
        *("github.com", "api.github.com", "codeload.github.com", "gitlab.com", "bitbucket.org", "git.acme.example"),
        *("pypi.org", "download.pytorch.org"),
    )

    def __init__(self, folder: Path) -> None:
        self.pages: dict[str, bytes | str] = {}
        self.repositories: dict[str, Path] = {}
        self.passwords: dict[str, tuple[str, str]] = {}
        self.seen: list[Seen] = []
        self.certificate = folder / "certificate.pem"
        _make_certificate(self.certificate, self.HOSTS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        internet = self

        class Answers(Handler):
            host = ""

            def do_CONNECT(self) -> None:  # noqa: N802 - http.server's name
                self.host = self.path.removesuffix(":443")
                self.answer_connected()
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb", -1), self.connection.makefile("wb", -1)
                self.close_connection = False

            def answer_connected(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self.wfile.flush()

            def finish(self) -> None:
                super().finish()
                self.connection.close()

            def serve(self) -> None:
                url = f"https://{self.host}{self.path}"
                internet.seen.append(Seen(url, dict(self.headers)))
                repository = next((known for known in internet.repositories if url.startswith(known + "/")), None)
                if repository:
                    return internet._git(self, repository, url.removeprefix(repository))
                page = internet.pages.get(url)
                if isinstance(page, str):
                    return self.answer(302, headers={"Location": page})
                kind = "text/html" if url.endswith("/") else "application/octet-stream"
                return self.answer(404) if page is None else self.answer(200, page, {"Content-Type": kind})

        super().__init__(Answers)

    @property
    def variables(self) -> dict[str, str]:
        """What a container's environment needs to reach it."""
        file = str(self.certificate)
        return {"https_proxy": self.url, "SSL_CERT_FILE": file, "GIT_SSL_CAINFO": file, "PIP_CERT": file}

    def publish(self, index: str, *wheels: Path) -> None:
        """Put wheels into a package index."""
        for path in wheels:
            name = path.name.split("-")[0]
            listed = self.pages.get(f"{index}{name}/", b"")
            assert isinstance(listed, bytes)
            link = f'<a href="{path.name.replace("+", "%2B")}">{path.name}</a>'
            self.pages[f"{index}{name}/"] = (listed or b"<!DOCTYPE html>") + link.encode()
            self.pages[f"{index}{name}/{path.name.replace('+', '%2B')}"] = path.read_bytes()

    def _git(self, request: Handler, repository: str, path: str) -> None:
        wanted = self.passwords.get(repository)
        if wanted and request.headers["Authorization"] != _basic(*wanted):
            return request.answer(401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        folder = self.repositories[repository]
        parts = urlsplit(path)
        variables = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers["Content-Type"] or "",
            "HTTP_CONTENT_ENCODING": request.headers["Content-Encoding"] or "",
            "GIT_PROTOCOL": request.headers["Git-Protocol"] or "",
        }
        answer = subprocess.run(
            ["git", "http-backend"], input=request.body(), env=variables, capture_output=True, check=True
        ).stdout
        head, _, body = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        return request.answer(status, body, headers)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _make_certificate(path: Path, hosts: Iterable[str]) -> None:
    """Write a key and a certificate of its own for hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    names = [*map(x509.DNSName, hosts), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))


# ---- the container


@dataclass
class Ended:
    """A container that has ended: its status as that of a process, and its log."""

    status: int
    log: str

    @property
    def last(self) -> str:
        """Its last line."""
        return self.log.strip().splitlines()[-1]

    @property
    def report(self) -> dict[str, Any]:
        """What ``PROGRAM`` reported about itself."""
        lines = [line for line in self.log.splitlines() if line.startswith("report: ")]
        return dict(json.loads(lines[-1].removeprefix("report: ")))


PROGRAM = """
import importlib.util, json, os, signal, sys
try:
    from importlib.metadata import distributions
except ImportError:
    distributions = lambda: ()
default = signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL
found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] != "pip"}
report = {"argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ), "packages": found, "path": sys.path}
# The log must not contain the key, which is in the environment.
report["key_is_right"] = report["environment"].pop("WANDB_API_KEY", None) == "KEY"
report["files"] = sorted(str(os.path.join(where, name)) for where, _, names in os.walk(".") for name in names if ".git" not in where)
report["wandb"] = importlib.util.find_spec("wandb") is not None
print("report: " + json.dumps(report), flush=True)
""".replace('"KEY"', repr(KEY))
"""A program that reports how it was started."""


@dataclass
class Container:
    """Runs the bootstrap as a container does: ``python3 -c TEXT`` with an environment of its own and nothing else.

    ``store`` has the artifacts, ``tools`` the programs in the image beside Python; ``wheels`` is the package index.
    """

    environment: Path
    folder: Path
    google: Google
    wheels: Path
    tools: tuple[str, ...] = ("git", "printenv", "sh")
    variables: dict[str, str] = field(default_factory=dict)
    user: int | None = None
    """The user that runs it, None for the user of the tests."""
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def store(self) -> Path:
        """The folder of artifacts."""
        return self.folder / "store"

    def put(self, name: str, files: Mapping[str, str | bytes], identity: str | None = None) -> str:
        """Make an artifact; gives its URI when it has an ``identity``, else its name."""
        place = self.store / (f"id-{identity}" if identity else name.replace("/", "%").replace(":", "%"))
        write(place, files)
        return f"wandb-artifact://_id/{identity}" if identity else name

    def job(self, files: Mapping[str, str | bytes] | None = None) -> str:
        """Make a job artifact of these files."""
        return self.put(
            "acme/vision/job-train:v3", {"wandb-job.json": "{}", "requirements.frozen.txt": "", **(files or {})}
        )

    def plan(self, **changes: Any) -> dict[str, Any]:
        """Return a plan that runs ``train.py`` of the code artifact ``QXJ0aWZhY3Q6MQ==``."""
        if changes.get("remote") and not changes["remote"].startswith("file:"):  # a path is refused before
            git = {"remote": changes["remote"], "commit": "abc"}
            found = job_source.read(JobArtifact("job", {"source_type": "repo", "source": {"git": git}}), SETTINGS)
            changes |= {"remote": found.remote, "ssh": found.ssh}
        return {
            "source": "artifact",
            "job": "acme/vision/job-train:v3",
            "artifact": "wandb-artifact://_id/QXJ0aWZhY3Q6MQ==",
            "remote": None,
            "ssh": False,
            "commit": None,
            "token_secret": None,
            "command": ["python", "train.py"],
            "args": [],
            "notebook": False,
            "working_dir": None,
            "api_key_secret": SECRET,
            "secretmanager": self.google.url,
            "retry_seconds": 0.01,
            **changes,
        }

    def code(self, files: Mapping[str, str | bytes] | None = None) -> None:
        """Make the code artifact of the plan."""
        self.put("", {"train.py": PROGRAM, **(files or {})}, "QXJ0aWZhY3Q6MQ==")

    def succeed(
        self,
        files: Mapping[str, str | bytes] | None = None,
        *,
        frozen: str = "",
        variables: Mapping[str, str] | None = None,
        **plan: Any,
    ) -> Ended:
        """Make the job and its code, run the plan, and check that the program succeeds."""
        self.job({"requirements.frozen.txt": frozen})
        self.code(files)
        ended = self.run(self.plan(**plan), **(variables or {}))
        assert ended.status == 0, ended.log
        return ended

    def begin(self, plan: Mapping[str, Any] | str, **variables: str) -> subprocess.Popen[str]:
        """Start it. The program follows the text as arguments and is not part of the plan."""
        given = {} if isinstance(plan, str) else dict(plan)
        program = [*(given.pop("command", None) or ()), *(given.pop("args", None) or ())]
        program = ["true"] if isinstance(plan, str) else program
        place = self.folder / f"container-{next(self._numbers)}"
        tools = place / "tools"
        tools.mkdir(parents=True)
        for tool in self.tools:
            found = shutil.which(tool)
            assert found, tool
            (tools / tool).symlink_to(found)
        for name in ("tmp", "home", "app"):
            (place / name).mkdir(exist_ok=True)
            if self.user is not None:
                os.chown(place / name, self.user, self.user)
        environment = {
            "PATH": f"{self.environment / 'bin'}:{tools}",
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            "GCE_METADATA_HOST": self.google.host,
            "WANDB_BASE_URL": "https://wandb.example",
            "WANDB_RUN_ID": "run1",
            "STORE": str(self.store),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "VERTEX_LAUNCH_PLAN": plan if isinstance(plan, str) else json.dumps(given),
            **self.variables,
            **variables,
        }
        return subprocess.Popen(
            [self.environment / "bin" / "python3", "-c", boot.packed(), *program],
            cwd=place / "app",
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
        )

    def run(self, plan: Mapping[str, Any] | str, **variables: str) -> Ended:
        """Run it to its end, and check that its log contains no secret."""
        with self.begin(plan, **variables) as process:
            log, _ = process.communicate(timeout=PATIENCE)
        for secret in (KEY, ACCESS_TOKEN, *(value.decode(errors="replace") for value in self.google.secrets.values())):
            for word in {secret.strip(), secret.strip().rpartition(":")[2]} - {""}:
                assert word not in log
        return Ended(process.returncode, log)


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def git(folder: Path, *arguments: str) -> bytes:
    """Run git with an identity of its own and without any configuration."""
    who = {
        f"GIT_{role}_{what}": "nobody@acme.example" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {"PATH": os.environ["PATH"], "HOME": "/", "GIT_CONFIG_NOSYSTEM": "1", **who}
    return subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True).stdout


def repository(folder: Path, *versions: Mapping[str, str | bytes]) -> tuple[Path, list[str]]:
    """Make a repository with a commit for each version of the files; give it and the commits."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    commits = []
    for files in versions:
        write(folder, files)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "--allow-empty", "-m", "a version")
        commits.append(git(folder, "rev-parse", "HEAD").decode().strip())
    return folder, commits


def tarball(files: Mapping[str, str | bytes], *members: tarfile.TarInfo, top: str = "acme-train-0123456") -> bytes:
    """Pack an archive as the hosts do, everything in one folder; ``members`` come as they are, between a comment and files."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a commit"}
    ) as tar:
        folder = tarfile.TarInfo(top)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for member in members:
            tar.addfile(member)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
