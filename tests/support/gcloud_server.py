"""The real gcloud, ten times as fast: its commands run in forks of one process that has loaded its modules already.

``variables`` starts that process, and gives a search path on which ``gcloud`` is a small client of it. Run as a script by
gcloud's own Python, this file is that process. After each command it imports what the command needed.
"""

import array
import atexit
import functools
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}})
streams = array.array("i", [0, 1, 2])
server.sendmsg([request.encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
sys.exit(int(server.makefile().read()))
"""


@functools.cache
def path() -> str:
    """Return a search path that finds the fast gcloud; it is as usual if gcloud is installed in an unusual way."""
    usual = os.environ["PATH"]
    sdk = Path(shutil.which("gcloud") or "").resolve().parents[1]
    python = sdk / "platform/bundledpythonunix/bin/python3"
    if not python.exists():
        return usual
    folder = Path(tempfile.mkdtemp(prefix="gcloud-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = folder / "socket"
    client = folder / "gcloud"
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        process = subprocess.Popen(
            [python, "-P", __file__, str(sdk / "lib"), str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(process.terminate)
    return f"{folder}{os.pathsep}{usual}"


def serve(main: Any, listener: socket.socket) -> None:
    """Run commands one after the other, each in a fork, for as long as the tests run."""
    parent = os.getppid()
    listener.settimeout(10)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            message, control, _, _ = connection.recvmsg(1 << 20, socket.CMSG_LEN(3 * array.array("i").itemsize))
            while not message.endswith(b"\n"):
                message += connection.recv(1 << 20)
            streams = array.array("i", control[0][2])
            reader, writer = os.pipe()
            if not os.fork():
                status = run(main, json.loads(message), streams)
                with os.fdopen(writer, "w") as names:
                    json.dump(
                        [name for name in sys.modules if name.startswith(("googlecloudsdk.", "apitools."))], names
                    )
                connection.sendall(str(status).encode())
                os._exit(0)
            for descriptor in (writer, *streams):
                os.close(descriptor)
            with os.fdopen(reader) as names:
                learn(json.loads(names.read() or "[]"))
            os.wait()


def run(main: Any, request: dict[str, Any], streams: "array.array[int]") -> int:
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
    sys.stdin, sys.stdout, sys.stderr = (open(standard, mode) for standard, mode in enumerate("rww"))  # noqa: SIM115, PTH123
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["gcloud.py", *request["arguments"]]
    try:
        status = main() or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


def learn(names: list[str]) -> None:
    """Import modules for the commands to come; those that exist only inside a command cannot be imported."""
    for name in names:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except ImportError:
                continue


if __name__ == "__main__":
    lib, descriptor = sys.argv[1:]
    sys.path[:0] = [f"{lib}/third_party", lib]
    from googlecloudsdk import gcloud_main  # type: ignore[import-not-found]

    serve(gcloud_main.main, socket.socket(fileno=int(descriptor)))
