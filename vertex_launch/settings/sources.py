"""Where settings come from: the two files and the environment, put together but not yet checked.

Called by ``config``, which says what each file may hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_launch.errors import Problem
from vertex_launch.problems import Location, dotted
from vertex_launch.settings.yaml_file import SettingsFile, read

LAUNCH_FILE, VERTEX_FILE = "launch-config.yaml", "vertex-launch.yaml"

REGIONS, STAGING = "GOOGLE_CLOUD_REGION", "STAGING_BUCKETS"
VARIABLES = {
    "VERTEX_LAUNCH_DEPLOYMENT": "deployment",
    "WANDB_BASE_URL": "base_url",
    "WANDB_ENTITY": "entity",
    "WANDB_LAUNCH_MAX_JOBS": "max_jobs",
    "WANDB_LAUNCH_START_TIMEOUT": "start_timeout",
    "WANDB_API_KEY_SECRET": "key_secret",
    "GOOGLE_CLOUD_PROJECT": "project",
    REGIONS: "regions",
    "STATE_BUCKET": "state_bucket",
    "DISPATCH_TOPIC": "tick_topic",
    "AIPLATFORM_ENDPOINT": "aiplatform_endpoint",
    "SECRETMANAGER_ENDPOINT": "secretmanager_endpoint",
    "LOGGING_ENDPOINT": "logging_endpoint",
}
"""Environment variables and the settings that they override."""


class Sources:
    """What the operator wrote.

    ``environ`` holds the variables that are not empty. ``values`` is what counts for each setting: the environment's, else
    the file's. ``place`` says where it stands. ``problems`` are those of the environment alone.
    """

    def __init__(
        self, environ: Mapping[str, str], root: Path, launch_fields: Collection[str], vertex_fields: Collection[str]
    ) -> None:
        self.environ = {variable: value for variable, value in environ.items() if value}
        self.launch = self._launch_file(root, launch_fields)
        self.vertex = self._vertex_file(root, vertex_fields)
        self.values = self.launch.settings() | self.vertex.settings()
        self.problems: list[Problem] = []
        self._origins: dict[Location, str] = {}
        self._override()

    def place(self, location: Location) -> str:
        """Name the place of a value to the operator, and that of a missing one: the file that it belongs in."""
        for end in range(len(location), 0, -1):
            if location[:end] in self._origins:
                return self._origins[location[:end]]
        file = self.launch if location[0] in self.launch.fields else self.vertex
        return f"{file.name}: {dotted(location)}"

    def unread(self) -> list[str]:
        """Give the settings that nobody can say are missing, since their file could not be read."""
        launch = [*self.launch.fields, "regions"] if self.launch.values is None else []
        return launch + list(self.vertex.fields if self.vertex.values is None else ())

    def _launch_file(self, root: Path, fields: Collection[str]) -> SettingsFile:
        name = self.environ.get("LAUNCH_CONFIG", LAUNCH_FILE)
        remedy = "Put the official agent's file there or set LAUNCH_CONFIG to its path; one line, `queues: [my-queue]`, will do"
        return read(root / name, name, fields, if_missing=remedy)

    def _vertex_file(self, root: Path, fields: Collection[str]) -> SettingsFile:
        name = self.environ.get("VERTEX_LAUNCH_CONFIG", VERTEX_FILE)
        if "VERTEX_LAUNCH_CONFIG" not in self.environ and not (root / name).exists():
            return SettingsFile(name, fields, {})
        return read(
            root / name, name, fields, if_missing="Put it there or unset VERTEX_LAUNCH_CONFIG: the file is optional"
        )

    def _override(self) -> None:
        environment = self.values.get("environment")
        if "regions" not in self.values and isinstance(environment, dict) and environment.get("region"):
            self.values["regions"] = [{"name": environment["region"]}]
            self._origins["regions",] = f"{self.launch.name}: environment.region"
        for variable, field in VARIABLES.items():
            if variable in self.environ:
                value = self.environ[variable]
                self._origins[field,] = f"environment variable {variable}"
                self.values[field] = self._regions(value) if variable == REGIONS else value
        if STAGING in self.environ:
            self._stage(self.environ[STAGING].split(","))

    def _stage(self, buckets: Sequence[str]) -> None:
        """Give each region its staging bucket as the environment names them; an empty entry is a region without one."""
        regions = self.values.get("regions")
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            return  # which is told as a problem of the regions
        if len(buckets) != len(regions):
            found = f"names {len(buckets)} buckets for {len(regions)} regions"
            remedy = (
                f"Write a comma list as long as that of the regions and in its order, as in {STAGING}=gs://one,gs://two"
            )
            self.problems.append(Problem(f"environment variable {STAGING}", found, remedy))
            return
        self.values["regions"] = [
            {**region, "staging_bucket": bucket.strip() or None}
            for region, bucket in zip(regions, buckets, strict=True)
        ]
        for index in range(len(buckets)):
            self._origins["regions", index, "staging_bucket"] = f"environment variable {STAGING}, entry {index + 1}"

    def _regions(self, names: str) -> list[dict[str, Any]]:
        """Give the regions that the variable names, each with its staging bucket from the file."""
        listed = self.values.get("regions")
        buckets = {
            region["name"]: (index, region.get("staging_bucket"))
            for index, region in enumerate(listed if isinstance(listed, list) else ())
            if isinstance(region, dict) and isinstance(region.get("name"), str)
        }
        regions: list[dict[str, Any]] = []
        for name in filter(None, map(str.strip, names.split(","))):
            here: Location = ("regions", len(regions))
            self._origins[here] = f"environment variable {REGIONS}, entry {len(regions) + 1}"
            index, bucket = buckets.get(name, (None, None))
            if index is not None:
                self._origins[*here, "staging_bucket"] = f"{self.vertex.name}: regions[{index}].staging_bucket"
            regions.append({"name": name, "staging_bucket": bucket})
        return regions
