"""A cloud that stays: two queues, a first command to copy, and a line for each change until Ctrl-C."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from local.machine.cloud import ENTITY, JOB_ACCOUNT, Cloud, Options
from local.machine.images import EXAMPLES, REGISTRY
from local.programs.demo_items import QUEUES
from local.programs.items import STARTING, Changes, Items

PORTS = {"wandb": 8801, "vertex": 8802, "secrets": 8803, "storage": 8804, "pubsub": 8805, "control": 8806, "iam": 8807}
PORTS |= {"logs": 8808, "monitoring": 8809, "dispatch": 8811, "dispatch_now": 8812, "job_state": 8813}
"""The ports of ``make up``: always the same, so that commands stay valid."""

_GUIDE = """\
The cloud is up: W&B, Vertex AI and the functions, with two queues of team {entity}.
This page: {control}/

Launch a first job. In another shell, in this folder:

  . {person}
  {wandb} launch --docker-image {registry}/mnist:1 \\
    --queue vertex-cpu --project demo --name first

A tick starts waiting items every {tick:g} s. To start them at once:

  curl -d '{{}}' -H 'Content-Type: application/json' {dispatch_now}

Images, in {registry}:

{images}
Watch   Changes appear in the shell of the cloud; {control}/ shows all items.
        The logs of the functions are in {folder}/*.log
Check   . {preflight}
        {python} -m vertex_launch check
Verify  . {preflight}
        {python} -m vertex_launch verify
Faults  {python} -m local --help explains how to disturb a service.
Stop    Press Ctrl-C in the shell of the cloud. Everything in it is lost.

Jobs can run as {account}.
"""


class Up:
    """Runs until it is interrupted."""

    def __init__(self, options: Options) -> None:
        self._cloud = Cloud(options)
        self._items = Items(self._cloud)

    def run(self) -> int:
        """Start the cloud, print how to use it, then print what changes."""
        cloud = self._cloud
        try:
            print(STARTING, flush=True)
            for name, config, variables in QUEUES:
                cloud.wandb.store.create_queue(ENTITY, name, resource_args=config, template_variables=variables)
            cloud.start()
            guide = self._guide()
            cloud.control.page = lambda: f"{guide}\n{self._overview()}"
            print(f"\n{guide}", flush=True)
            changes = Changes()
            while True:
                for item in self._items.read(cloud.state()):
                    for line in changes.lines(item):
                        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                time.sleep(0.3)
        finally:
            cloud.stop()

    def _guide(self) -> str:
        cloud = self._cloud
        lines = [f"  {uri.removeprefix(f'{REGISTRY}/'):<17} {image.about}\n" for uri, image in EXAMPLES.items()]
        return _GUIDE.format(
            entity=ENTITY,
            control=cloud.control.url,
            person=_script(cloud.folder / "person.sh", cloud.person_variables()),
            preflight=_script(cloud.folder / "preflight.sh", cloud.preflight_variables()),
            wandb=_program("wandb"),
            python=_program("python"),
            registry=REGISTRY,
            tick=cloud.options.tick_every,
            dispatch_now=cloud.dispatch_now.url,
            images="".join(lines),
            folder=cloud.folder,
            account=JOB_ACCOUNT,
        )

    def _overview(self) -> str:
        items = self._items.read(self._cloud.state())
        lines = [f"  {item.elapsed(time.time())}  {item.line()}\n" for item in items]
        return f"Items:\n\n{''.join(lines)}" if lines else "Items: none yet.\n"


def _script(path: Path, variables: Mapping[str, str]) -> Path:
    """Write a file that a shell can read with ``.`` to set the variables."""
    path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
    return path


def _program(name: str) -> str:
    """Return how to call a program of this Python's environment from the current folder."""
    ours = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(ours):
        return name
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)
