"""A local stand-in for the Google APIs that gcloud uses when it deploys: one HTTP server with one table of methods.

It stores resources, so a second deployment finds the first one. It is as strict as Google about mistakes of a deployment: APIs
that are not enabled, missing accounts, roles and topics, names that are taken. Google's own accounts ("agents") do not exist until
they are asked for, and have no role until one is granted. New accounts, roles and metrics may take time to work, on a clock that a
test can turn. Anything else is answered 501 and listed in ``unknown``.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from local.standins.vertex.server import PROJECTS
from local.standins.web import Handler, WebServer

Json = dict[str, Any]
((PROJECT, NUMBER),) = PROJECTS.items()

PUBSUB_AGENT = f"service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
"""Google's account that makes the tokens of pushes, and moves dead letters."""
DAY = 86400.0

SERVICES = (
    "artifactregistry",
    "cloudbuild",
    "cloudfunctions",
    "cloudresourcemanager",
    "cloudscheduler",
    "iam",
    "logging",
    "monitoring",
    "pubsub",
    "run",
    "secretmanager",
    "serviceusage",
    "storage",
)
"""Their names in gcloud's properties and in the names of the APIs."""


@dataclass(frozen=True)
class Call:
    """One request: ``path`` begins with the service, without the API's version, and has no query."""

    method: str
    path: str
    query: Json
    body: Any
    status: int

    @property
    def changes(self) -> bool:
        """Whether it was sent to change something."""
        return self.method != "GET" and not self.path.endswith((":getIamPolicy", ":testIamPermissions"))

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


@dataclass
class Snapshot:
    """All resources at one moment, and the calls since the previous snapshot. Can be written as JSON."""

    calls: list[Call]
    resources: dict[str, Json]
    bindings: dict[str, list[Json]]
    enabled: list[str]
    agents: list[str]

    def dump(self) -> Json:
        """Return it in JSON types."""
        return asdict(self)

    @classmethod
    def parse(cls, values: Json) -> Snapshot:
        """Parse what ``dump`` returned."""
        return cls(**{**values, "calls": [Call(**call) for call in values["calls"]]})

    def policies(self) -> dict[str, dict[str, set[str]]]:
        """Return all roles: resource to role to members. A role with a condition is written ``role if EXPRESSION``."""
        found: dict[str, dict[str, set[str]]] = {}
        for resource, bindings in self.bindings.items():
            for binding in bindings:
                condition = binding.get("condition", {}).get("expression")
                role = f"{binding['role']} if {condition}" if condition else binding["role"]
                found.setdefault(resource, {}).setdefault(role, set()).update(binding["members"])
        return found

    def refused_pushes(self) -> dict[str, str]:
        """Return the push subscriptions whose pushes a function does not get, and why."""
        found = {}
        for name, made in self.resources.items():
            push = made.get("pushConfig", {}) if name.startswith(f"pubsub/projects/{PROJECT}/subscriptions/") else {}
            if reason := self._refused(push) if push.get("pushEndpoint") else "":
                found[name] = reason
        return found

    def _refused(self, push: Json) -> str:
        policies, caller = self.policies(), push["oidcToken"]["serviceAccountEmail"]
        account = f"iam/projects/{PROJECT}/serviceAccounts/{caller}"
        makers = {
            *policies.get(account, {}).get("roles/iam.serviceAccountTokenCreator", ()),
            *policies.get(f"cloudresourcemanager/projects/{PROJECT}", {}).get("roles/pubsub.serviceAgent", ()),
        }
        if account not in self.resources or PUBSUB_AGENT not in self.agents:
            return f"{caller} or {PUBSUB_AGENT} does not exist"
        if f"serviceAccount:{PUBSUB_AGENT}" not in makers:
            return f"{PUBSUB_AGENT} may not make tokens of {caller}"
        for name, made in self.resources.items():
            if made.get("serviceConfig", {}).get("uri") == push["oidcToken"]["audience"] == push["pushEndpoint"]:
                invokers = policies.get(_run_service(name), {}).get("roles/run.invoker", ())
                return "" if f"serviceAccount:{caller}" in invokers else f"{caller} may not call {name}"
        return f"no function has the address {push['pushEndpoint']}"

    def permissions(self, role: str) -> set[str]:
        """Return the permissions of a custom role, by its full name."""
        return set(self.resources[f"iam/{role}"]["includedPermissions"])


class Refused(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Kind:
    """A kind of resource: ``pattern`` is the collection's path, ``name_from`` says where a create has the name.

    That is ``path`` (a PUT to the name itself), ``?x`` (a parameter of the query), ``.x`` (a field of the body), or ``new``.
    ``slow`` kinds are made and deleted by operations, which are done at once here. ``wrapped`` is the field of the body that
    holds the resource.
    """

    pattern: str
    name_from: str
    slow: bool = False
    wrapped: str = ""

    @property
    def key(self) -> str:
        """The field of a list's answer."""
        return "items" if self.pattern.startswith("storage/") else self.pattern.rpartition("/")[2]


P, L = "projects/[^/]+", "projects/[^/]+/locations/[^/]+"
KINDS = (
    Kind(f"artifactregistry/{L}/repositories", "?repositoryId", slow=True),
    Kind(f"cloudfunctions/{L}/functions", "?functionId", slow=True),
    Kind(f"cloudscheduler/{L}/jobs", ".name"),
    Kind(f"iam/{P}/serviceAccounts", ".accountId", wrapped="serviceAccount"),
    Kind(f"iam/{P}/roles", ".roleId", wrapped="role"),
    Kind(f"logging/{P}/sinks", ".name"),
    Kind(f"logging/{P}/metrics", ".name"),
    Kind(f"monitoring/{P}/alertPolicies", "new"),
    Kind(f"monitoring/{P}/dashboards", "new"),
    Kind(f"pubsub/{P}/topics", "path"),
    Kind(f"pubsub/{P}/subscriptions", "path", wrapped="subscription"),
    Kind(f"secretmanager/{P}/secrets", "?secretId"),
    Kind(f"secretmanager/{P}/secrets/[^/]+/versions", "new"),
    Kind("storage/b", ".name"),
    Kind("storage/b/[^/]+/o", ".name"),
)


@dataclass(frozen=True)
class Request:
    """The argument of a handler; ``match`` is its pattern's match on the path."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    match: re.Match[str]


Answer = Callable[[Request], Json]


class GoogleApis(WebServer):
    """The APIs of one project: ``start`` and ``stop`` them; gcloud finds them by ``variables``.

    ``resources`` maps service and full name (``pubsub/projects/P/topics/T``) to what was made; put foreign ones there.
    ``bindings`` maps the same to the bindings of a policy. ``uploads`` has the zips of functions by the name of their object.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.unknown: list[str] = []
        self.resources: dict[str, Json] = {
            f"cloudresourcemanager/projects/{PROJECT}": {
                "projectId": PROJECT,
                "projectNumber": NUMBER,
                "lifecycleState": "ACTIVE",
            }
        }
        self.bindings: dict[str, list[Json]] = {}
        self.enabled = {"serviceusage.googleapis.com"}
        self.agents: set[str] = set()
        """Google's own accounts that were asked for; there are no others at first."""
        self.late: set[str] = set()
        """Accounts that are not known yet when a right is given to them for the first time."""
        self.spread = self.metric_delay = self.api_delay = 0.0
        """Seconds until a new account or role works, until an alert may watch a new metric, and until an enabled API answers."""
        self.clock: Callable[[], float] = time.monotonic
        self._since: dict[tuple[str, ...], float] = {}
        """When a resource was made, or a role granted to a member, on this clock."""
        self.uploads: dict[str, bytes] = {}
        self.operations: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        super().__init__(_Handler)
        self._table: list[tuple[str, re.Pattern[str], Answer]] = [
            (method, re.compile(pattern), answer) for methods, pattern, answer in self._routes() for method in methods
        ]

    def variables(self, folder: Path) -> dict[str, str]:
        """Return the environment in which gcloud uses only these APIs, with its configuration in ``folder``."""
        endpoints = {f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name.upper()}": f"{self.url}/{name}/" for name in SERVICES}
        return endpoints | {
            "CLOUDSDK_CONFIG": str(folder),
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
            "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "true",
        }

    def snapshot(self) -> Snapshot:
        """Return the current state and the calls since the last snapshot."""
        with self._lock:
            calls, self.calls = self.calls, []
            values = Snapshot(calls, self.resources, self.bindings, sorted(self.enabled), sorted(self.agents)).dump()
        return Snapshot.parse(json.loads(json.dumps(values)))

    def serve(self, method: str, target: str, content: bytes) -> tuple[int, Json]:
        """Answer one request and remember it."""
        parts = urlsplit(target)
        # Twice: gcloud writes a metric's name so that the API gets it quoted once more.
        path = "/".join(_segment(unquote(unquote(part))) for part in parts.path.split("/"))
        path = re.sub(r"^/([a-z]+)/(?:v[0-9][a-z0-9]*/)?", r"\1/", path)
        query = dict(parse_qsl(parts.query))
        body: Any = None
        with self._lock:
            try:
                if not path.startswith("upload/"):
                    body = json.loads(content) if content else {}
                    self._check_enabled(path)
                status, answer = 200, self._answer(method, path, query, content if body is None else body)
            except Refused as refused:
                error = {"code": refused.status, "status": refused.reason, "message": str(refused)}
                status, answer = refused.status, {"error": error}
            self.calls.append(Call(method, path, query, body, status))
        return status, answer

    def _answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Json:
        for allowed, pattern, answer in self._table:
            if allowed == method and (match := pattern.fullmatch(path)):
                return answer(Request(method, path, query, body, match))
        self.unknown.append(f"{method} {path}")
        raise Refused(501, "UNIMPLEMENTED", f"the stand-in does not know {method} {path}")

    def _check_enabled(self, path: str) -> None:
        service = f"{path.partition('/')[0]}.googleapis.com"
        if service not in self.enabled or self.clock() < self._since.get((service,), -1e9) + self.api_delay:
            raise Refused(
                403, "PERMISSION_DENIED", f"{service} has not been used in project {NUMBER} before or it is disabled."
            )

    def _routes(self) -> Iterable[tuple[tuple[str, ...], str, Answer]]:
        """Yield methods, pattern and function of everything that is known; the first match answers."""
        service = "([a-z]+)"
        yield ("GET",), f"serviceusage/{P}/services", self._list_services
        yield ("GET",), f"serviceusage/{P}/services/([^/]+)", self._get_service
        yield ("POST",), f"serviceusage/{P}/services:batchEnable", self._enable
        yield ("POST",), f"serviceusage/{P}/services/([^/]+):enable", self._enable
        yield ("POST",), f"serviceusage/{P}/services/([^/]+):generateServiceIdentity", self._make_agent
        yield ("GET", "POST"), "(.+):getIamPolicy", self._get_policy
        yield ("POST",), "(.+):setIamPolicy", self._set_policy
        yield ("GET",), "(storage/b/[^/]+)/iam", self._get_policy
        yield ("PUT",), "(storage/b/[^/]+)/iam", self._set_policy
        yield ("GET",), "cloudresourcemanager/" + P, self._get
        yield ("GET",), f"cloudfunctions/{L}/runtimes", self._list_runtimes
        yield ("POST",), f"cloudfunctions/({L})/functions:generateUploadUrl", self._make_upload
        yield ("PUT",), "upload/(.+)", self._upload
        yield ("GET",), f"{service}/(?:{L}/)?operations/[^/]+", self._get_operation
        yield ("POST",), f"iam/{P}/roles/[^/]+:undelete", self._undelete_role
        yield ("DELETE",), f"iam/{P}/roles/[^/]+", self._delete_role
        yield ("POST",), f"cloudbuild/{P}(?:/locations/[^/]+)?/builds", self._build
        yield ("GET",), "storage/b/[^/]+/storageLayout", self._storage_layout
        yield ("GET",), "storage/b/[^/]+/(?:folders|managedFolders)", lambda request: {"items": []}
        for kind in KINDS:
            yield ("GET",), kind.pattern, partial(self._list, kind)
            yield ("GET",), f"{kind.pattern}/[^/]+", self._get
            if kind.name_from == "path":
                yield ("PUT",), f"({kind.pattern})/([^/]+)", partial(self._create, kind)
            else:
                yield ("POST",), f"({kind.pattern})", partial(self._create, kind)
            yield ("PATCH", "PUT"), f"{kind.pattern}/[^/]+", partial(self._update, kind)
            yield ("DELETE",), f"{kind.pattern}/[^/]+", partial(self._delete, kind)

    # Resources of every kind

    def _named(self, path: str) -> str:
        """Return the key of a resource; accounts may be named without their project."""
        path = re.sub(r"^iam/projects/-/serviceAccounts/", f"iam/projects/{PROJECT}/serviceAccounts/", path)
        if path not in self.resources:
            raise Refused(404, "NOT_FOUND", f"{path} does not exist")
        return path

    def _get(self, request: Request) -> Json:
        return self.resources[self._named(request.path)]

    def _list(self, kind: Kind, request: Request) -> Json:
        if request.path.startswith("secretmanager/") and request.path.endswith("/versions"):
            self._named(request.path.rpartition("/")[0])
        found = [value for name, value in self.resources.items() if name.rpartition("/")[0] == request.path]
        if kind.key == "roles":  # without what is in them, as Google answers unless more is asked for
            shown = [role for role in found if request.query.get("showDeleted") == "True" or not role.get("deleted")]
            found = [{key: value for key, value in role.items() if key != "includedPermissions"} for role in shown]
        return {{"serviceAccounts": "accounts"}.get(kind.key, kind.key): found}

    def _create(self, kind: Kind, request: Request) -> Json:
        collection = request.match[1]
        where, name = kind.name_from[0], kind.name_from[1:]
        if kind.name_from == "path":
            name = request.match[2]
        elif kind.name_from == "new":
            name = str(next(self._numbers))
        else:
            name = (request.query if where == "?" else request.body)[name].removeprefix(
                f"{collection.partition('/')[2]}/"
            )
        body = request.body.get(kind.wrapped, {}) if kind.wrapped and kind.name_from != "path" else request.body
        if kind.key == "serviceAccounts":
            name = f"{name}@{PROJECT}.iam.gserviceaccount.com"
        path = f"{collection}/{_segment(name)}"
        if path in self.resources:
            raise Refused(409, "ALREADY_EXISTS", f"{path} already exists")
        short = kind.pattern.startswith(("logging/", "storage/"))
        resource = {**body, "name": name if short else path.partition("/")[2]}
        finish = getattr(self, f"_make_{kind.key}", None)
        if finish:
            finish(resource, path)
        self.resources[path] = resource
        self._since[(path,)] = self.clock()
        return self._done(path, resource) if kind.slow else resource

    def _update(self, kind: Kind, request: Request) -> Json:
        path = self._named(request.path)
        resource = self.resources[path]
        body = request.body[kind.wrapped] if kind.wrapped in request.body and kind.wrapped else request.body
        mask = request.query.get("updateMask") or request.body.get("updateMask")
        if kind.key == "dashboards" and body.get("etag") != resource["etag"]:
            raise Refused(409, "ABORTED", f"{path} has the etag {resource['etag']!r}, not {body.get('etag')!r}")
        if mask:
            for field_path in mask.split(","):
                _assign(resource, body, [_camel(word) for word in field_path.split(".")])
            if kind.key == "functions":
                self._make_functions(resource, path)  # it is built again
        elif request.method == "PATCH" and kind.pattern.startswith(("storage/", "iam/")):
            resource.update(body)
        else:
            kept: Json = {key: resource[key] for key in ("name", "writerIdentity") if key in resource}
            resource.clear()
            resource.update({**body, **kept})
            finish = getattr(self, f"_make_{kind.key}", None)
            if finish:
                finish(resource, path)
        return self._done(path, resource) if kind.slow else resource

    def _delete(self, kind: Kind, request: Request) -> Json:
        path = self._named(request.path)
        inside = [name for name in self.resources if name.startswith(f"{path}/")]
        if kind.pattern == "storage/b" and inside:
            raise Refused(409, "CONFLICT", "The bucket you tried to delete is not empty.")
        for name in [path, _run_service(path), *inside]:
            self.resources.pop(name, None)
            self.bindings.pop(name, None)
        return self._done(path, {}) if kind.slow else {}

    def _done(self, path: str, response: Json) -> Json:
        service, _, name = path.partition("/")
        parent = name.rpartition("/")[0].rpartition("/")[0]
        operation = {"name": f"{parent}/operations/{next(self._numbers)}", "done": True, "metadata": {}}
        if response.get("state") == "FAILED":
            operation["error"] = {"code": 3, "message": response["stateMessages"][0]["message"]}
        else:
            operation["response"] = response
        self.operations[f"{service}/{operation['name']}"] = operation
        return operation

    def _get_operation(self, request: Request) -> Json:
        return self.operations[request.path]

    def _exists(self, path: str, what: str) -> None:
        if path not in self.resources:
            raise Refused(400, "INVALID_ARGUMENT", f"{what} {path.partition('/')[2]} does not exist")

    def _account_exists(self, email: str) -> None:
        if email.endswith(f"@{PROJECT}.iam.gserviceaccount.com"):
            self._exists(f"iam/projects/{PROJECT}/serviceAccounts/{email}", "Service account")
        young = self._young(f"iam/projects/{PROJECT}/serviceAccounts/{email}")
        if email in self.late or young:
            self.late.discard(email)
            raise Refused(400, "INVALID_ARGUMENT", f"Service account {email} does not exist.")
        if re.fullmatch(rf"service-{NUMBER}@.+", email) and email not in self.agents:
            raise Refused(400, "INVALID_ARGUMENT", f"Service account {email} does not exist.")

    def _young(self, *what: str) -> bool:
        """Return whether a resource or a role (resource, role, member) is too new to work everywhere."""
        return what in self._since and self.clock() < self._since[what] + self.spread

    def _lacks(self, member: str, role: str, path: str, condition: str = "") -> bool:
        """Return whether a member does not have a role that works; ``condition`` must be in its expression."""
        for binding in self.bindings.get(path, []):
            where = binding.get("condition", {}).get("expression", "")
            if (binding["role"], member in binding["members"]) == (role, True) and (condition in where or not where):
                return self._young(path, role, member)
        return True

    # What Google adds to, and demands of, new ones

    def _make_serviceAccounts(self, account: Json, path: str) -> None:  # noqa: N802 - the collection's name
        account |= {"email": path.rpartition("/")[2], "projectId": PROJECT, "uniqueId": str(next(self._numbers))}

    def _make_roles(self, role: Json, path: str) -> None:
        role["etag"] = _etag(role)

    def _make_sinks(self, sink: Json, path: str) -> None:
        sink["writerIdentity"] = f"serviceAccount:service-{NUMBER}@gcp-sa-logging.iam.gserviceaccount.com"
        self.agents.add(sink["writerIdentity"].partition(":")[2])
        self._exists("pubsub/" + sink["destination"].partition("/")[2], "Topic")

    def _make_dashboards(self, dashboard: Json, path: str) -> None:
        dashboard["etag"] = str(next(self._numbers))

    def _make_subscriptions(self, subscription: Json, path: str) -> None:
        self._exists(f"pubsub/{subscription['topic']}", "Topic")
        if "deadLetterPolicy" in subscription:
            self._exists(f"pubsub/{subscription['deadLetterPolicy']['deadLetterTopic']}", "Topic")
        if token := subscription.get("pushConfig", {}).get("oidcToken"):
            self._account_exists(token["serviceAccountEmail"])

    def _make_functions(self, function: Json, path: str) -> None:
        build, service = function["buildConfig"], function["serviceConfig"]
        self._account_exists(service["serviceAccountEmail"])
        self._account_exists(build["serviceAccount"].rpartition("/")[2])
        self._exists(f"artifactregistry/{build['dockerRepository']}", "Repository")
        if build["source"]["storageSource"]["object"] not in self.uploads:
            raise Refused(400, "INVALID_ARGUMENT", "the source was never uploaded")
        name, run = path.rpartition("/")[2], _run_service(path)
        if lacking := self._build_lacks(build, region=path.split("/")[4]):
            text = f"Build failed: {build['serviceAccount'].rpartition('/')[2]} lacks {', '.join(lacking)}"
            function |= {"state": "FAILED", "environment": "GEN_2", "stateMessages": [{"message": text}]}
            return
        function.pop("stateMessages", None)
        self.resources[run] = {"name": run.partition("/")[2]}
        service |= {"uri": f"https://{name}-abcdef-uc.a.run.app", "service": run.partition("/")[2]}
        function |= {"state": "ACTIVE", "environment": "GEN_2"}

    def _build_lacks(self, build: Json, region: str) -> list[str]:
        """Return the roles that a function's build account needs and that do not work."""
        project, member = (
            f"cloudresourcemanager/projects/{PROJECT}",
            f"serviceAccount:{build['serviceAccount'].rpartition('/')[2]}",
        )
        bucket = f"projects/_/buckets/gcf-v2-sources-{NUMBER}-{region}"
        needed = (
            ("roles/logging.logWriter", project, ""),
            ("roles/storage.objectViewer", project, f'resource.name == "{bucket}"'),
            ("roles/storage.objectViewer", project, f'resource.name.startsWith("{bucket}/")'),
            ("roles/artifactregistry.writer", f"artifactregistry/{build['dockerRepository']}", ""),
        )
        return [role for role, path, where in needed if self._lacks(member, role, path, where)]

    def _make_alertPolicies(self, alert: Json, path: str) -> None:  # noqa: N802 - the collection's name
        for metric in re.findall(r"logging\.googleapis\.com/user/([^\"\\]+)", json.dumps(alert)):
            made = f"logging/projects/{PROJECT}/metrics/{_segment(metric)}"
            if made not in self.resources or self.clock() < self._since.get((made,), -1e9) + self.metric_delay:
                raise Refused(404, "NOT_FOUND", f"Cannot find metric(s) that match type = {metric!r}.")

    def _make_items(self, resource: Json, path: str) -> None:
        """Finish a bucket or an object."""
        resource |= {"id": resource["name"], "metageneration": "1", "generation": "1"}
        if "/o/" in path:
            resource["bucket"] = path.split("/")[2]

    # APIs, Google's accounts, rights

    def _list_services(self, request: Request) -> Json:
        return {"services": [{"config": {"name": name}, "state": "ENABLED"} for name in sorted(self.enabled)]}

    def _get_service(self, request: Request) -> Json:
        state = "ENABLED" if request.match[1] in self.enabled else "DISABLED"
        return {"name": request.path.partition("/")[2], "config": {"name": request.match[1]}, "state": state}

    def _enable(self, request: Request) -> Json:
        for name in request.body.get("serviceIds") or [request.match[1]]:
            self.enabled.add(name)
            self._since[(name,)] = self.clock()
        return {"name": "operations/enable", "done": True, "response": {}}

    def _make_agent(self, request: Request) -> Json:
        service = request.match[1].partition(".")[0]
        email = f"service-{NUMBER}@gcp-sa-{service}.iam.gserviceaccount.com"
        self.agents.add(email)
        return {"name": "operations/agent", "done": True, "response": {"email": email, "uniqueId": "1"}}

    def _get_policy(self, request: Request) -> Json:
        path = self._named(request.match[1])
        if "/serviceAccounts/" in path and self._young(path):
            raise Refused(403, "PERMISSION_DENIED", f"Permission 'iam.serviceAccounts.getIamPolicy' denied on {path}")
        policy: Json = {"version": 3, "bindings": self.bindings.get(path, [])}
        return {**policy, "etag": _etag(policy)}

    def _set_policy(self, request: Request) -> Json:
        path = self._named(request.match[1])
        policy = request.body if request.method == "PUT" else request.body["policy"]
        if policy["etag"] != self._get_policy(request)["etag"]:
            raise Refused(409, "ABORTED", f"the policy of {path} has changed meanwhile")
        for binding in policy.get("bindings", []):
            role = self.resources.get(f"iam/{binding['role']}", {})
            gone = not role or role.get("deleted")
            if binding["role"].startswith("projects/") and (gone or self._young(f"iam/{binding['role']}")):
                raise Refused(400, "INVALID_ARGUMENT", f"Role {binding['role']} does not exist")
            for member in binding["members"]:
                kind, _, email = member.partition(":")
                if kind == "serviceAccount":
                    self._account_exists(email)
                self._since.setdefault((path, binding["role"], member), self.clock())
        self.bindings[path] = policy.get("bindings", [])
        return self._get_policy(request)

    def _undelete_role(self, request: Request) -> Json:
        path = self._named(request.path.removesuffix(":undelete"))
        role = self.resources[path]
        if self.clock() > self._since.get((path, "deleted"), self.clock()) + 7 * DAY:
            raise Refused(
                400, "FAILED_PRECONDITION", f"{path} was deleted more than 7 days ago and cannot be undeleted."
            )
        role["deleted"] = False
        return role

    def _delete_role(self, request: Request) -> Json:
        """Keep it as deleted, as Google does for weeks."""
        role = self.resources[self._named(request.path)]
        role["deleted"] = True
        self._since[request.path, "deleted"] = self.clock()
        return role

    # Functions, builds, storage

    def _list_runtimes(self, request: Request) -> Json:
        return {"runtimes": [{"name": f"python{version}", "environment": "GEN_2"} for version in ("311", "312", "313")]}

    def _make_upload(self, request: Request) -> Json:
        name, region = f"{next(self._numbers)}.zip", request.match[1].rpartition("/")[2]
        source = {"bucket": f"gcf-v2-uploads-{NUMBER}-{region}", "object": name}
        return {"uploadUrl": f"{self.url}/upload/{name}", "storageSource": source}

    def _upload(self, request: Request) -> Json:
        self.uploads[request.match[1]] = request.body
        return {}

    def _build(self, request: Request) -> Json:
        """Take a build whose substitutions are those that it uses, no more and no fewer."""
        used = set(re.findall(r"\$\{(_[A-Z0-9_]+)\}", json.dumps({**request.body, "substitutions": {}})))
        if odd := used ^ set(request.body.get("substitutions", {})):
            raise Refused(400, "INVALID_ARGUMENT", f"substitutions and template do not match: {sorted(odd)}")
        build = {"id": str(next(self._numbers)), "status": "QUEUED", "projectId": PROJECT, **request.body}
        return {"name": f"operations/build/{PROJECT}/{build['id']}", "metadata": {"build": build}}

    def _storage_layout(self, request: Request) -> Json:
        bucket = self.resources[self._named(request.path.rpartition("/")[0])]
        return {"bucket": bucket["name"], "hierarchicalNamespace": {"enabled": False}}


class _Handler(Handler):
    server: GoogleApis

    def serve(self) -> None:
        self.answer_json(*self.server.serve(self.command, self.path, self.body()))


def _run_service(path: str) -> str:
    """Return the key of the Cloud Run service that serves a function."""
    return re.sub("^cloudfunctions/(.+)/functions/", r"run/\1/services/", path)


def _segment(name: str) -> str:
    """Write one name of a path, in which a slash does not divide."""
    return quote(name, safe="@:,$")


def _etag(value: Json) -> str:
    text = json.dumps({key: kept for key, kept in value.items() if key != "etag"}, sort_keys=True)
    return base64.b64encode(str(hash(text)).encode()).decode()


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _assign(resource: Json, body: Json, names: list[str]) -> None:
    """Put the field at the path ``names`` of ``body`` into ``resource``; what is not in it is removed."""
    *parents, last = names
    for name in parents:
        resource = resource.setdefault(name, {})
        body = body.get(name, {})
    if last in body:
        resource[last] = body[last]
    else:
        resource.pop(last, None)
