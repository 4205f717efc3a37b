"""The command line of the local cloud.

up     start a cloud on this machine and keep it: launch your own jobs into it
demo   push 23 items with the real W&B tools and show how each of them ends
chaos  kill functions and disturb services, then account for every item
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from types import FrameType

from local.machine.cloud import SERVICES, Options, PortsTaken
from local.machine.functions import FunctionFailed
from local.programs.chaos import Chaos
from local.programs.demo import Demo
from local.programs.up import PORTS, Up

_EPILOG = """\
TIME is written as 80ms or 1.5s. To disturb a service of a running cloud, send
faults to its control address. This one creates the next job and loses the answer:

  curl http://127.0.0.1:8806/faults/vertex \\
    -d '{"faults": [{"operation": "CreateCustomJob", "kind": "lose"}]}'

The kinds are fail, refuse, lose, delay, lag, answer and body;
local/standins/faults.py describes them.
"""


def main() -> int:
    """Run the command and return the exit status."""
    arguments = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        return _run(arguments)
    except PortsTaken as error:
        remedy = "Stop that process, which may be another `make up`, or use other ports"
        return _failed(f"{error}. {remedy}: python -m local up --free-ports")
    except (FunctionFailed, OSError, RuntimeError) as error:  # gRPC raises RuntimeError when it cannot listen
        return _failed(f"the local cloud did not start: {error}")
    except KeyboardInterrupt as stopped:
        print("Stopped. No process and no file is left.")
        return 128 + int(stopped.args[0])


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "chaos":
        return Chaos(arguments.seconds, arguments.seed, arguments.items).run()
    options = Options(
        tick_every=arguments.tick,
        lease=arguments.lease,
        list_lag=arguments.list_lag,
        latencies=dict(arguments.latency),
        google_pubsub=arguments.google_pubsub,
        raw_pushes=arguments.raw_pushes,
        ports=PORTS if arguments.command == "up" and not arguments.free_ports else {},
    )
    return Up(options).run() if arguments.command == "up" else Demo(options, plain=arguments.plain).run()


def _interrupt(number: int, _: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the cleanup
    raise KeyboardInterrupt(number)


def _failed(text: str) -> int:
    print(f"python -m local: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description="Run the functions and every service that they use on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{up,demo,chaos}")
    up = commands.add_parser("up", help="start a cloud and keep it: launch your own jobs into it")
    demo = commands.add_parser("demo", help="push 23 items with the real W&B tools and show how each of them ends")
    chaos = commands.add_parser("chaos", help="kill functions and disturb services, then account for every item")
    chaos.add_argument(
        "--seconds", type=float, default=120.0, metavar="N", help="how long the disturbances last (default: 120)"
    )
    chaos.add_argument("--seed", type=int, default=0, metavar="N", help="selects the disturbances (default: 0)")
    chaos.add_argument("--items", type=int, default=0, metavar="N", help="push N good items instead of one every 2.5 s")
    for command, tick in ((up, 60.0), (demo, 15.0)):
        command.add_argument(
            "--tick", type=_seconds, default=tick, metavar="TIME", help=f"time between two ticks (default: {tick:g}s)"
        )
        command.add_argument(
            "--lease", type=_seconds, default=60.0, metavar="TIME", help="how long W&B leases an item (default: 60s)"
        )
        command.add_argument(
            "--list-lag", type=_seconds, default=0.0, metavar="TIME", help="how late lists show a job (default: 0s)"
        )
        command.add_argument(
            "--latency",
            type=_latency,
            action="append",
            default=[],
            metavar="SERVICE=TIME",
            help=f"time added to every request; the services are {', '.join(SERVICES)}",
        )
        command.add_argument(
            "--google-pubsub", action="store_true", help="use Google's Pub/Sub emulator, which needs Java"
        )
        command.add_argument(
            "--raw-pushes", action="store_true", help="push to the functions without Eventarc's envelope"
        )
    up.add_argument("--free-ports", action="store_true", help="use free ports instead of the fixed ones")
    demo.add_argument("--plain", action="store_true", help="print one line for each change instead of a live table")
    return parser


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 80ms or 1.5s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _latency(text: str) -> tuple[str, float]:
    service, _, duration = text.partition("=")
    if service not in SERVICES:
        raise argparse.ArgumentTypeError(f"{service!r} is not a service: use one of {', '.join(SERVICES)}")
    return service, _seconds(duration)
