"""`python -m local up` keeps a cloud on this machine; `demo` shows what becomes of some items; `chaos` troubles it."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading

from local.machine.cloud import JOB_LOGS, SERVICES, TICKS, Cloud, Options
from local.machine.functions import FunctionFailed
from local.programs.chaos import Chaos
from local.programs.demo import Demo

_EPILOG = """\
Durations are written 80ms or 1.5s. While the cloud runs, POST to /faults/SERVICE at the control address troubles a
service, as in {"faults": [{"operation": "CreateCustomJob", "kind": "lose"}]} for vertex: it makes the next job and loses
the answer. Kinds are fail, refuse, lose, delay and lag; local/faults.py says what each does.
"""
_PORTS = {"wandb": 8801, "vertex": 8802, "secrets": 8803, "storage": 8804, "pubsub": 8805, "control": 8806, "iam": 8807}
_PORTS |= {"logs": 8808, "dispatch": 8811, "dispatch_now": 8812, "job_state": 8813}


def main() -> int:
    """Run the command; gives the exit status."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
        return _run(arguments)
    except (FunctionFailed, OSError, RuntimeError) as error:  # a port that is taken is gRPC's RuntimeError
        print(f"The local cloud did not start: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "chaos":
        return Chaos(arguments.seconds, arguments.seed).run()
    options = Options(
        tick_every=arguments.tick,
        lease=arguments.lease,
        list_lag=arguments.list_lag,
        latencies=dict(arguments.latency),
        google_pubsub=arguments.google_pubsub,
        raw_pushes=arguments.raw_pushes,
        ports=_PORTS if arguments.command == "up" and not arguments.free_ports else {},
    )
    return _up(options) if arguments.command == "up" else Demo(options, plain=arguments.plain).run()


def _up(options: Options) -> int:
    cloud = Cloud(options)
    cloud.start()
    try:
        print(f"The cloud is up; a tick every {options.tick_every:g} s. Ctrl-C ends it.\n")
        print(f"  W&B           {cloud.wandb.url}")
        print(f"  dispatch_now  {cloud.dispatch_now.url}   (curl -X POST, with a JSON object or nothing)")
        print(f"  dispatch      {cloud.dispatch.url}   (takes pushes of ticks; topic {TICKS})")
        print(f"  job_state     {cloud.job_state.url}   (takes pushes of log entries; topic {JOB_LOGS})")
        print(f"  control       {cloud.control.url}   (GET /state, GET /faults, POST /faults/SERVICE)")
        print(f"  logs          {cloud.folder}/*.log")
        print("\nFor people's tools, as `wandb launch`:\n")
        for name, value in cloud.person_variables().items():
            print(f"  export {name}={value}")
        print("\nFor functions started by hand, and for python -m vertex_launch check:\n")
        for name, value in cloud.preflight_variables().items():
            print(f"  export {name}={value}")
        sys.stdout.flush()
        threading.Event().wait()
    finally:
        cloud.stop()
    return 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything, print the addresses and the environment to use, and stay")
    demo = commands.add_parser("demo", help="push some items with the real command and show what becomes of them")
    chaos = commands.add_parser("chaos", help="kill functions and trouble services, then account for every item")
    chaos.add_argument("--seconds", type=float, default=120.0, metavar="N", help="how long things go wrong")
    chaos.add_argument("--seed", type=int, default=0, metavar="N", help="what goes wrong, and when")
    for command, tick in ((up, 60.0), (demo, 15.0)):
        command.add_argument("--tick", type=_seconds, default=tick, metavar="TIME", help="time between two ticks")
        command.add_argument("--lease", type=_seconds, default=60.0, metavar="TIME", help="how long W&B leases an item")
        command.add_argument("--list-lag", type=_seconds, default=0.0, metavar="TIME", help="how late lists show jobs")
        command.add_argument(
            "--latency",
            type=_latency,
            action="append",
            default=[],
            metavar="SERVICE=TIME",
            help=f"added to every request; services are {', '.join(SERVICES)}",
        )
        command.add_argument(
            "--google-pubsub", action="store_true", help="use Google's emulator (needs Java and its jar)"
        )
        command.add_argument(
            "--raw-pushes", action="store_true", help="push to the functions without Eventarc's envelope"
        )
    up.add_argument(
        "--free-ports", action="store_true", help="take free ports instead of those that are always the same"
    )
    demo.add_argument("--plain", action="store_true", help="lines instead of a live table")
    return parser


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 80ms or 1.5s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _latency(text: str) -> tuple[str, float]:
    service, _, duration = text.partition("=")
    if service not in SERVICES:
        raise argparse.ArgumentTypeError(f"{service!r} is no service; there are {', '.join(SERVICES)}")
    return service, _seconds(duration)


if __name__ == "__main__":
    sys.exit(main())
