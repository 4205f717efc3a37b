"""The local Vertex AI with Google's own JobServiceClient."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.api_core import exceptions
from google.cloud.aiplatform_v1 import CustomJob, JobServiceClient, JobState
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import JobServiceGrpcTransport
from google.protobuf import field_mask_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from local.machine.container_spec import command_line, environment, expand
from local.machine.containers import Containers, Fate, Script
from local.machine.images import EXAMPLES, REGISTRY, Image
from local.standins.faults import Faults
from local.standins.metadata import Tokens
from local.standins.vertex import job_errors, job_filter
from local.standins.vertex.jobs import ENDED, Capacity
from local.standins.vertex.rules import quota_metric
from local.standins.vertex.server import VertexServer
from local.standins.wandb import WandbServer
from local.standins.wandb.runs import Run
from tests.local_cloud.conftest import Clock
from tests.support.processes import eventually

PARENT = "projects/demo-project/locations/us-central1"
QUEUED, PENDING, RUNNING = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING
SUCCEEDED, FAILED = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED
CANCELLING, CANCELLED = JobState.JOB_STATE_CANCELLING, JobState.JOB_STATE_CANCELLED


Vertex = tuple[VertexServer, JobServiceClient]
Serve = Callable[..., Vertex]
Running = tuple[VertexServer, JobServiceClient, Containers]
Log = list[dict[str, Any]]


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers with a client each, and stops them all."""
    opened: list[tuple[VertexServer, Any]] = []

    def start(**options: Any) -> Vertex:
        server = VertexServer(**options)
        server.start()
        channel = grpc.insecure_channel(server.address)
        opened.append((server, channel))
        return server, JobServiceClient(transport=JobServiceGrpcTransport(channel=channel))

    yield start
    for server, channel in opened:
        channel.close()
        server.stop()


@pytest.fixture
def vertex(serve: Serve, clock: Clock, log: Log) -> Vertex:
    """A server whose jobs only the test moves."""
    return serve(clock=clock, on_log=log.append, error_lag=45, regions=("us-central1", "europe-west4"))


def job(image: str = "hello", **changes: Any) -> Any:
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": f"{REGISTRY}/{image}:1", **changes.pop("container", {})},
    }
    spec = {"worker_pool_specs": [pool], **changes.pop("spec", {})}
    return {"display_name": "a job", "labels": {"team": "vision"}, "job_spec": spec, **changes}


def create(client: JobServiceClient, asked: Any = None) -> CustomJob:
    return client.create_custom_job(parent=PARENT, custom_job=asked or job())


def accelerated(count: int, replicas: int = 1) -> Any:
    asked = job()
    machine = {"machine_type": "n1-standard-4", "accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": count}
    pool = {**asked["job_spec"]["worker_pool_specs"][0], "machine_spec": machine, "replica_count": replicas}
    asked["job_spec"]["worker_pool_specs"] = [pool]
    return asked


def sized(gigabytes: int) -> Any:
    asked = job()
    asked["job_spec"]["worker_pool_specs"][0]["disk_spec"] = {"boot_disk_size_gb": gigabytes}
    return asked


def test_a_created_job_is_queued_and_has_only_what_a_caller_may_set(vertex: Vertex, clock: Clock) -> None:
    server, client = vertex
    made = client.create_custom_job(parent=PARENT, custom_job=job(name="mine", state=SUCCEEDED, error={"code": 5}))
    assert made.name.startswith("projects/415104041262/locations/us-central1/customJobs/")
    assert made.name.rsplit("/", 1)[1].isdigit()
    assert (made.state, made.error.code) == (QUEUED, 0)
    assert made.create_time.timestamp() == pytest.approx(clock.now, abs=1e-3)  # type: ignore[attr-defined]
    assert made.job_spec.worker_pool_specs[0].container_spec.image_uri == f"{REGISTRY}/hello:1"
    by_id = made.name.replace("415104041262", "demo-project")
    assert client.get_custom_job(name=by_id) == made == server.jobs[made.name]
    assert server.calls == {"CreateCustomJob": 1, "GetCustomJob": 1}


@pytest.mark.parametrize(
    ("asked", "field", "text"),
    [
        (job(spec={"worker_pool_specs": []}), "job_spec.worker_pool_specs", "At least one worker pool"),
        (job(spec={"worker_pool_specs": [{}]}), "job_spec.worker_pool_specs[0]", "must not be empty"),
        (
            job(spec={"worker_pool_specs": [{"machine_spec": {"machine_type": "n1-standard-4"}}]}),
            "job_spec.worker_pool_specs[0]",
            "One of `container_spec` and `python_package_spec`",
        ),
        (
            job(container={"image_uri": "https://gcr.io/a b"}),
            "job_spec.worker_pool_specs[0].container_spec.image_uri",
            "not a valid container image URI",
        ),
        (
            job(container={"env": [{"name": f"V{n}", "value": ""} for n in range(101)]}),
            "job_spec.worker_pool_specs[0].container_spec.env",
            "At most 100",
        ),
        (
            job(container={"env": [{"name": "not-a-name", "value": ""}]}),
            "job_spec.worker_pool_specs[0].container_spec.env",
            "C identifier",
        ),
        (accelerated(0), "job_spec.worker_pool_specs[0].machine_spec.accelerator_type", "or none"),
        (accelerated(1, replicas=2), "job_spec.worker_pool_specs[0].replica_count", "must be 1"),
        (accelerated(1, replicas=-1), "job_spec.worker_pool_specs[0].replica_count", "negative"),
        (accelerated(-1), "job_spec.worker_pool_specs[0].machine_spec.accelerator_count", "negative"),
        (sized(-1), "job_spec.worker_pool_specs[0].disk_spec.boot_disk_size_gb", "negative"),
        (job(display_name=""), "display_name", "required"),
        (job(display_name="x" * 129), "display_name", "128"),
        (job(labels={"Team": "vision"}), "labels", "Label keys and values"),
        (job(labels={"team": "Vision"}), "labels", "Label keys and values"),
        (job(labels={"team": "x" * 64}), "labels", "Label keys and values"),
        (job(labels={"1st": "vision"}), "labels", "Label keys and values"),
        (job(labels={f"k{n}": "" for n in range(65)}), "labels", "no more than 64"),
        (job(spec={"base_output_directory": {"output_uri_prefix": "s3://x"}}), "output_uri_prefix", "gs://"),
    ],
)
def test_what_is_wrong_with_a_job_is_refused(vertex: Vertex, asked: Any, field: str, text: str) -> None:
    server, client = vertex
    asked.setdefault("job_spec", {}).setdefault("worker_pool_specs", job()["job_spec"]["worker_pool_specs"])
    with pytest.raises(exceptions.InvalidArgument) as refused:
        create(client, asked)
    assert refused.value.message.startswith("List of found errors:\t1.Field: ")
    violation = refused.value.details[0].field_violations[0]
    assert violation.field.endswith(field)
    assert text in violation.description
    assert violation.description in refused.value.message
    assert not server.jobs


def test_later_pools_can_be_empty_and_variables_can_be_repeated(vertex: Vertex) -> None:
    _, client = vertex
    asked = job(container={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]})
    asked["job_spec"]["worker_pool_specs"].append({})
    assert len(create(client, asked).job_spec.worker_pool_specs) == 2


def test_other_projects_regions_accounts_and_names_are_refused(vertex: Vertex) -> None:
    server, client = vertex
    with pytest.raises(
        exceptions.PermissionDenied, match=r"Permission 'aiplatform.customJobs.create' denied on resource"
    ):
        client.create_custom_job(parent="projects/other/locations/us-central1", custom_job=job())
    with pytest.raises(exceptions.InvalidArgument, match="doesn't match the endpoint"):
        client.create_custom_job(parent="projects/demo-project/locations/mars-north1", custom_job=job())
    server.limits.denied_accounts = {"a@demo-project.iam.gserviceaccount.com"}
    with pytest.raises(exceptions.InvalidArgument) as refused:
        client.create_custom_job(
            parent=PARENT, custom_job=job(spec={"service_account": "a@demo-project.iam.gserviceaccount.com"})
        )
    assert refused.value.message == (
        "You do not have permission to act as service_account: a@demo-project.iam.gserviceaccount.com. "
        "(or it may not exist)."
    )
    with pytest.raises(exceptions.NotFound):
        client.get_custom_job(name=f"{PARENT}/customJobs/1")
    with pytest.raises(exceptions.InvalidArgument):
        client.get_custom_job(name="customJobs/1")


def test_sixty_creates_and_deletes_a_minute_in_a_region(vertex: Vertex, clock: Clock) -> None:
    server, client = vertex
    for _ in range(58):
        last = create(client)
    server.advance(last.name, SUCCEEDED)
    client.delete_custom_job(name=last.name).result(timeout=5)
    create(client)
    with pytest.raises(exceptions.ResourceExhausted, match="The following quota metrics exceed quota limits: "):
        create(client)
    client.create_custom_job(parent="projects/demo-project/locations/europe-west4", custom_job=job())
    clock.now += 60
    create(client)
    with pytest.raises(exceptions.NotFound):
        client.get_custom_job(name=last.name)


def test_reads_have_a_quota_of_their_own(vertex: Vertex, clock: Clock) -> None:
    server, client = vertex
    server.limits.requests_per_minute = 2
    name = create(client).name
    client.get_custom_job(name=name)
    client.list_custom_jobs(parent=PARENT)
    with pytest.raises(exceptions.ResourceExhausted, match="resource_management_requests"):
        client.get_custom_job(name=name)
    clock.now += 60
    client.cancel_custom_job(name=name)


def test_more_accelerators_than_there_are_is_refused(vertex: Vertex) -> None:
    server, client = vertex
    server.capacity.accelerators["NVIDIA_TESLA_T4"] = 2
    client.create_custom_job(parent=PARENT, custom_job=accelerated(2))
    with pytest.raises(exceptions.ResourceExhausted) as refused:
        client.create_custom_job(parent=PARENT, custom_job=accelerated(4))
    assert refused.value.message == (
        "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus"
    )
    assert quota_metric("TPU_V2") == "aiplatform.googleapis.com/custom_model_training_tpu_v2"


def test_lists_lag_and_gets_do_not(vertex: Vertex, clock: Clock) -> None:
    server, client = vertex
    server.limits.list_lag = 5
    made = create(client)
    assert client.get_custom_job(name=made.name).state == QUEUED
    assert not list(client.list_custom_jobs(parent=PARENT))
    clock.now += 5
    server.advance(made.name, RUNNING)
    assert [job.state for job in client.list_custom_jobs(parent=PARENT)] == [QUEUED]
    server.limits.list_lag = 0
    assert [job.state for job in client.list_custom_jobs(parent=PARENT)] == [RUNNING]
    server.faults.lag("ListCustomJobs", 10, times=1)
    assert not list(client.list_custom_jobs(parent=PARENT))


def test_pages_and_masks(vertex: Vertex) -> None:
    server, client = vertex
    server.limits.submissions_per_minute = 1000
    names = [create(client).name for _ in range(7)]
    request = {"parent": PARENT, "page_size": 3, "filter": "labels.team=vision"}
    pages = list(client.list_custom_jobs(request).pages)
    assert [len(page.custom_jobs) for page in pages] == [3, 3, 1]
    assert [job.name for page in pages for job in page.custom_jobs] == names[::-1]
    with pytest.raises(exceptions.InvalidArgument, match="page_size"):
        client.list_custom_jobs({**request, "page_size": -1})
    with pytest.raises(exceptions.InvalidArgument, match="page_token"):
        client.list_custom_jobs({**request, "filter": "", "page_token": pages[0].next_page_token})
    mask = field_mask_pb2.FieldMask(paths=["name", "labels", "job_spec.worker_pool_specs"])
    part = next(iter(client.list_custom_jobs({"parent": PARENT, "read_mask": mask})))
    assert (part.name, part.display_name, part.state, dict(part.labels)) == (names[-1], "", 0, {"team": "vision"})
    assert part.job_spec.worker_pool_specs[0].machine_spec.machine_type == "n1-standard-4"
    with pytest.raises(exceptions.InvalidArgument, match="read_mask"):
        client.list_custom_jobs({"parent": PARENT, "read_mask": field_mask_pb2.FieldMask(paths=["nonsense"])})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", "abc"),
        ('state="JOB_STATE_RUNNING"', "a"),
        ("state!=JOB_STATE_RUNNING", "bc"),
        ('display_name="b-1"', "b"),
        ("display_name!=b-1", "ac"),
        ('display_name:"*-1"', "ab"),
        ("labels.team=vision", "ab"),
        ('labels.team="vision"', "ab"),
        ("labels.own:*", "b"),
        ("NOT labels.own:*", "ac"),
        ("labels.team=vision AND NOT state=JOB_STATE_RUNNING", "b"),
        ("labels.own:* OR state=JOB_STATE_RUNNING AND labels.team=vision", "ab"),
        ("labels.team=vision AND display_name=c-2 OR display_name=a-1", "a"),
        ('create_time>"2026-02-23T21:11:10Z"', "bc"),
        ('create_time<="2026-02-23T22:11:10+01:00"', "a"),
        ("labels.team=speech", ""),
    ],
)
def test_filters_find_the_jobs_that_they_describe(vertex: Vertex, clock: Clock, text: str, meant: str) -> None:
    server, client = vertex
    made = {}
    for name, labels in (("a-1", {"team": "vision"}), ("b-1", {"team": "vision", "own": ""}), ("c-2", {})):
        made[name[0]] = client.create_custom_job(parent=PARENT, custom_job=job(display_name=name, labels=labels))
        clock.now += 2
    server.advance(made["a"].name, RUNNING)
    found = client.list_custom_jobs({"parent": PARENT, "filter": text})
    assert sorted(job.display_name[0] for job in found) == list(meant)


@pytest.mark.parametrize(
    "text",
    [
        "(state=JOB_STATE_RUNNING)",
        "state=RUNNING",
        "state>JOB_STATE_RUNNING",
        "end_time>2026-02-23T21:11:10Z",
        "labels.my-team=vision",
        "labels.team!=vision",
        "labels.team:vision",
        "create_time>yesterday",
        'create_time>"2026-02-23T21:11:10"',
        "state=JOB_STATE_RUNNING labels.team=vision",
        "state=JOB_STATE_RUNNING AND",
        "AND",
        "state",
        "state=",
        "state==JOB_STATE_RUNNING",
        'display_name="open',
    ],
)
def test_filters_that_could_not_be_verified_are_refused(vertex: Vertex, text: str) -> None:
    with pytest.raises(exceptions.InvalidArgument, match="Invalid filter: "):
        vertex[1].list_custom_jobs({"parent": PARENT, "filter": text})


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    try:
        test = job_filter.parse(text)
    except job_filter.FilterError:
        return
    assert test(CustomJob.pb(CustomJob())) in (True, False)


def test_a_job_is_moved_through_its_states(vertex: Vertex, clock: Clock, log: Log) -> None:
    server, client = vertex
    name = create(client).name
    for state in (PENDING, RUNNING, FAILED):
        clock.now += 10
        server.advance(name, state, job_errors.exited(3) if state == FAILED else None)
    ended = client.get_custom_job(name=name)
    assert (ended.state, ended.error.message) == (FAILED, "")
    assert (ended.end_time - ended.start_time).total_seconds() == 10  # type: ignore[union-attr]
    clock.now += 45
    told = client.get_custom_job(name=name)
    assert (told.error.code, told.error.message) == (
        3,
        "The replica workerpool0-0 exited with a non-zero status of 3. Termination reason: Error.",
    )
    assert [entry["textPayload"].split(".")[0] for entry in log] == [
        "Waiting for job to be provisioned",
        "Vertex AI is provisioning job running framework",
        "Vertex AI is setting up this job",
        "Waiting for training program to start",
        "Job is preparing",
        "Job is running",
        "Finished tearing down training program",
        "Job failed",
    ]
    with pytest.raises(KeyError):
        server.advance("projects/1/locations/r/customJobs/1", RUNNING)


def test_cancelling_by_hand(vertex: Vertex) -> None:
    server, client = vertex
    name = create(client).name
    for _ in range(2):
        client.cancel_custom_job(name=name)
        assert client.get_custom_job(name=name).state == CANCELLING
    with pytest.raises(exceptions.FailedPrecondition, match="cannot be deleted"):
        client.delete_custom_job(name=name)
    server.advance(name, CANCELLED)
    with pytest.raises(exceptions.FailedPrecondition, match="JOB_STATE_CANCELLED"):
        client.cancel_custom_job(name=name)


def test_log_entries_have_the_shape_of_real_ones(vertex: Vertex, clock: Clock, log: Log) -> None:
    samples = sorted((Path(__file__).parents[1] / "samples" / "log-entries").glob("*.json"))
    assert samples
    server, client = vertex
    for end in (SUCCEEDED, FAILED, CANCELLED):
        name = create(client).name
        server.advance(name, RUNNING)
        server.advance(name, end)
    written = {entry["textPayload"]: entry for entry in log}
    for path in samples:
        real = json.loads(path.read_text())
        ours = written[real["textPayload"]]
        real_id, our_id = (entry["resource"]["labels"]["job_id"] for entry in (real, ours))
        real = json.loads(json.dumps(real).replace(real_id, our_id))
        assert {**ours, "insertId": "", "receiveTimestamp": ""} == {**real, "insertId": "", "receiveTimestamp": ""}


def test_faults_and_unknown_methods(serve: Serve) -> None:
    faults = Faults()
    server, client = serve(faults=faults)
    faults.lose("CreateCustomJob")
    with pytest.raises(exceptions.ServiceUnavailable, match="Socket closed"):
        create(client)
    assert len(server.jobs) == 1
    faults.fail("CreateCustomJob", 429)
    with pytest.raises(exceptions.ResourceExhausted):
        create(client)
    faults.fail("CreateCustomJob", "INTERNAL")
    with pytest.raises(exceptions.InternalServerError):
        create(client)
    assert len(server.jobs) == 1
    with pytest.raises(exceptions.MethodNotImplemented):
        client.list_hyperparameter_tuning_jobs(parent=PARENT)
    faults.latency = 0.2
    with pytest.raises(exceptions.DeadlineExceeded):
        client.list_custom_jobs(parent=PARENT, timeout=0.05)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [("$(A)-$(B)", "1-$(B)"), ("$$(A) $$$(A) $A $", "$(A) $1 $A $"), ("$(A", "$(A"), ("$()", "$()")],
)
def test_references_are_replaced_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


def test_values_refer_to_earlier_variables() -> None:
    variables = CustomJob(
        job_spec={
            "worker_pool_specs": [
                {
                    "container_spec": {
                        "env": [
                            {"name": "A", "value": "$(SERVICE) $(B)"},
                            {"name": "B", "value": "$(A)"},
                            {"name": "A", "value": "last"},
                        ]
                    }
                }
            ]
        }
    )
    declared = variables.job_spec.worker_pool_specs[0].container_spec.env
    assert environment(declared, {"SERVICE": "s"}) == {"SERVICE": "s", "A": "last", "B": "s $(B)"}


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], [], ["entry", "default"]),
        ([], ["$(X)"], ["entry", "x"]),
        (["mine"], [], ["mine"]),
        (["mine"], ["arg"], ["mine", "arg"]),
    ],
)
def test_command_and_args_against_entrypoint_and_cmd(command: list[str], args: list[str], argv: list[str]) -> None:
    assert command_line(["entry"], ["default"], command, args, {"X": "x"}) == argv


def output(log: Log, name: str) -> str:
    own = [entry for entry in log if entry["resource"]["labels"]["job_id"] == name.rsplit("/", 1)[1]]
    return "\n".join(entry["jsonPayload"]["message"] for entry in own if "jsonPayload" in entry)


def ended(server: VertexServer, name: str) -> Any:
    assert eventually(lambda: server.jobs[name].state in ENDED)
    return server.jobs[name]


@pytest.fixture
def running(serve: Serve, log: Log) -> Running:
    """A server that really runs containers, quickly."""
    containers = Containers(queued=0, pending=0, grace=0.5)
    return *serve(runner=containers, on_log=log.append), containers


def test_containers_end_as_their_programs_do(running: Running, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_OURS", "x")
    server, client, _ = running
    asked = {
        "hello": job(container={"args": ["$(WHO)"], "env": [{"name": "WHO", "value": "you"}]}),
        "fail": job("fail"),
        "hog": job("hog"),
        "none": job("nothing-of-this-name"),
        "no command": job(container={"command": ["no-such-program"]}),
    }
    names = {key: create(client, value).name for key, value in asked.items()}
    found = {key: ended(server, name) for key, name in names.items()}
    assert found["hello"].state == SUCCEEDED
    greeting, variables = output(log, names["hello"]).splitlines()
    assert greeting == "hello you"
    assert variables.split()[1:] == [
        *("CLOUD_ML_JOB_ID", "CLOUD_ML_PROJECT_ID", "GCE_METADATA_HOST", "GCE_METADATA_IP", "HOME", "LANG"),
        *("LOCAL_VERTEX_CONTAINER", "NO_PROXY", "PATH", "TMPDIR", "WHO", "no_grpc_proxy", "no_proxy"),
    ]
    errors = {key: job.error.message for key, job in found.items() if job.state == FAILED}
    assert errors == {
        "fail": "The replica workerpool0-0 exited with a non-zero status of 3. Termination reason: Error.",
        "hog": "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137.",
        "none": job_errors.image_not_found(f"{REGISTRY}/nothing-of-this-name:1").message,
        "no command": "The replica workerpool0-0 exited with a non-zero status of 127. Termination reason: Error.",
    }
    assert not found["none"].start_time
    assert output(log, names["no command"]) == "no-such-program: No such file or directory"


_WHO_AM_I = """
import google.auth, os
from google.auth.transport.requests import Request
credentials, _ = google.auth.default()
credentials.refresh(Request())
print(credentials.service_account_email)
open(os.environ["TOLD"] + credentials.service_account_email, "w").write(
    os.environ["GCE_METADATA_HOST"] + " " + credentials.token)
"""


def test_each_container_acts_only_as_the_account_of_its_job(serve: Serve, log: Log, tmp_path: Path) -> None:
    tokens = Tokens()
    server, client = serve(runner=Containers(queued=0, pending=0, tokens=tokens), on_log=log.append)
    container = {
        "command": ["python", "-c", _WHO_AM_I],
        "env": [{"name": "TOLD", "value": f"{tmp_path}/"}, {"name": "NO_PROXY", "value": "*"}],
    }
    named = [f"{name}@demo-project.iam.gserviceaccount.com" for name in ("ada", "bob")]
    default = "service-415104041262@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
    names = {
        account: client.create_custom_job(
            parent=PARENT,
            custom_job=job(container=container, spec={"service_account": account} if account in named else {}),
        ).name
        for account in (*named, default)
    }
    hosts = []
    for account, name in names.items():
        assert ended(server, name).state == SUCCEEDED, output(log, name)
        assert output(log, name) == account
        host, token = (tmp_path / account).read_text().split()
        assert tokens.account(token) == account
        hosts.append(host)
    for host in hosts:  # the metadata server ends with its container
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{host}/", timeout=5)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # Init may collect a dead orphan only after a while.
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def stubborn(tmp_path: Path) -> Image:
    """Return an image whose program has a child in its own session. Both ignore SIGTERM."""
    (tmp_path / "main.py").write_text(
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}\\n')\n"
        "time.sleep(600)\n"
    )
    return Image("a test", tmp_path)


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_no_process_survives(serve: Serve, stubborn: Image, tmp_path: Path, how: str) -> None:
    containers = Containers({f"{REGISTRY}/stubborn:1": stubborn}, queued=0, pending=0, grace=0.2)
    server, client = serve(runner=containers)
    told = tmp_path / "pids"
    asked = job("stubborn", container={"args": [str(told)]})
    name = create(client, asked).name
    assert eventually(lambda: told.exists() and told.read_text().endswith("\n"))
    pids = [int(pid) for pid in told.read_text().split()]
    assert all(alive(pid) for pid in pids)
    if how == "cancel":
        client.cancel_custom_job(name=name)
        stopped = ended(server, name)
        assert (stopped.state, stopped.error.code) == (CANCELLED, 1)
    else:
        server.stop()
        assert server.jobs[name].state == RUNNING
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_job_that_is_cancelled_in_its_queue_never_starts(serve: Serve, log: Log) -> None:
    server, client = serve(runner=Containers(queued=60), on_log=log.append)
    name = create(client).name
    client.cancel_custom_job(name=name)
    stopped = ended(server, name)
    assert (stopped.state, stopped.error.code, bool(stopped.start_time)) == (CANCELLED, 1, False)
    assert eventually(lambda: log[-1]["textPayload"] == "Job cancelled.")  # the entry follows the change


def test_jobs_wait_in_their_queue_for_capacity(serve: Serve) -> None:
    capacity = Capacity(accelerators={"NVIDIA_TESLA_T4": 2})
    server, client = serve(runner=Containers(queued=0, pending=60), capacity=capacity)

    def is_pending(name: str) -> bool:
        return bool(server.jobs[name].state == PENDING)

    first = create(client, accelerated(2)).name
    assert eventually(lambda: is_pending(first))
    waiting = create(client, accelerated(1)).name
    free = create(client, job()).name
    assert eventually(lambda: is_pending(free))
    assert server.jobs[waiting].state == QUEUED
    client.cancel_custom_job(name=first)
    assert eventually(lambda: is_pending(waiting))
    capacity.jobs = 2
    late = create(client, job()).name
    time.sleep(0.1)
    assert server.jobs[late].state == QUEUED
    client.cancel_custom_job(name=free)
    assert eventually(lambda: is_pending(late))


def test_fates(running: Running, log: Log, tmp_path: Path) -> None:
    server, client, containers = running
    containers.scripts += [
        Script(Fate.STOCKOUT, display_name="scarce*"),
        Script(Fate.PREEMPTED, display_name="spot", strikes=2, restarts=1),
        Script(Fate.INTERNAL, display_name="broken", restarts=3),
        Script(Fate.PREEMPTED, display_name="back", restarts=1, after=0.3, region="us-*"),
    ]
    once = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); n = p.exists(); p.touch(); n or time.sleep(60)"
    asked = [
        job(display_name="scarce 1"),
        job("sleep", display_name="spot"),
        job("sleep", display_name="broken", spec={"scheduling": {"disable_retries": True}}),
        job(display_name="back", container={"command": ["python", "-c", once, str(tmp_path / "begun")]}),
        job(display_name="scarce 2"),
    ]
    names = [create(client, one).name for one in asked]
    found = [ended(server, name) for name in names]
    assert [job.error.message for job in found] == [
        "Resources are insufficient in region: us-central1. Try a different region or use a different accelerator.",
        job_errors.PREEMPTED.message,
        "Internal error occurred for the current attempt",
        "",
        "",
    ]
    assert [job.state for job in found] == [FAILED, FAILED, FAILED, SUCCEEDED, SUCCEEDED]
    assert "STOCKOUT" in found[1].error.message
    assert (tmp_path / "begun").exists()
    assert [script.times for script in containers.scripts] == [0, 0, 0, 0]


def test_the_example_really_trains(running: Running, log: Log) -> None:
    server, client, _ = running
    offline = {"env": [{"name": "WANDB_MODE", "value": "offline"}], "args": ["--epochs", "3"]}
    names = [
        client.create_custom_job(parent=PARENT, custom_job=job(image, container=offline)).name
        for image in ("mnist", "quick")
    ]
    found = [ended(server, name) for name in names]
    assert [job.state for job in found] == [SUCCEEDED, SUCCEEDED], output(log, names[0]) + output(log, names[1])
    epochs = [line for line in output(log, names[0]).splitlines() if line.startswith("epoch ")]
    accuracies = [float(line.rsplit(" ", 1)[1]) for line in epochs]
    assert len(epochs) == 3
    assert accuracies[-1] > 0.8
    assert set(EXAMPLES) >= {f"{REGISTRY}/{image}:1" for image in ("mnist", "quick", "no-init", "fail", "hog", "sleep")}


@pytest.mark.parametrize("fate", Fate)
def test_a_fate_applies_to_the_first_jobs_and_not_to_a_later_one(running: Running, fate: Fate) -> None:
    """An item submits its jobs under one name."""
    server, client, containers = running
    containers.scripts.append(Script(fate, display_name="an item", times=2))
    found = []
    for _ in range(3):
        name = client.create_custom_job(parent=PARENT, custom_job=job(display_name="an item")).name
        found.append(ended(server, name))
    assert [job.state for job in found] == [FAILED, FAILED, SUCCEEDED]
    errors = {
        Fate.STOCKOUT: job_errors.stockout("us-central1"),
        Fate.PREEMPTED: job_errors.PREEMPTED,
        Fate.INTERNAL: job_errors.INTERNAL,
    }
    assert [job.error.message for job in found] == [errors[fate].message] * 2 + [""]


def test_a_fate_of_labels_meets_every_job_with_them_however_fast_it_is(running: Running) -> None:
    """A second job for the same attempt changes nothing for the next attempt."""
    server, client, containers = running
    wait = ("-c", "import sys, time; sys.argv[1:] and time.sleep(60)")
    script = Script(Fate.PREEMPTED, times=None, after=0.3, args=("long",), labels={"attempt": ["1", "2"]})
    containers.scripts.append(script)
    found = []
    for attempt in ("1", "1", "2", "3"):
        asked = job(container={"command": ["python", *wait]}, labels={"attempt": attempt})
        found.append(ended(server, create(client, asked).name).state)
    assert found == [FAILED, FAILED, FAILED, SUCCEEDED]


def test_what_is_scarce_in_one_region_is_available_in_another(serve: Serve) -> None:
    containers = Containers(queued=0, pending=0, scripts=[Script(Fate.STOCKOUT, region="us-central1", times=9)])
    server, client = serve(runner=containers, regions=("us-central1", "us-east4"))
    parents = [PARENT, PARENT.replace("us-central1", "us-east4")]
    names = [client.create_custom_job(parent=parent, custom_job=job()).name for parent in parents]
    assert [ended(server, name).state for name in names] == [FAILED, SUCCEEDED]


def test_the_traceback_of_a_crash_is_only_in_the_log(running: Running, log: Log) -> None:
    server, client, _ = running
    name = client.create_custom_job(parent=PARENT, custom_job=job("crash")).name
    assert ended(server, name).error.message == job_errors.exited(1).message
    words = output(log, name)
    assert "Traceback" in words
    assert all(word in words for word in ("STOCKOUT", "preempted", "out of memory", "Internal error", "successfully"))


@pytest.fixture
def wandb() -> Iterator[WandbServer]:
    server = WandbServer(api_keys={"k" * 40: "ada"}, teams={"acme": ["ada"]}, default_entities={"ada": "acme"})
    server.start()
    yield server
    server.stop()


def stepping(wandb: WandbServer, *args: str, **more: str) -> Any:
    """Return a job that reports as the run acme/demo/run1."""
    variables = {
        "WANDB_BASE_URL": wandb.url,
        "WANDB_API_KEY": "k" * 40,
        "WANDB_ENTITY": "acme",
        "WANDB_PROJECT": "demo",
        "WANDB_RUN_ID": "run1",
        **more,
    }
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return job("steps", container={"args": list(args), "env": env})


def test_a_program_continues_where_the_attempt_before_ended(running: Running, log: Log, wandb: WandbServer) -> None:
    server, client, _ = running

    def run() -> Run:
        found = wandb.store.runs.get("acme", "demo", "run1")
        assert found is not None
        return found

    endless = stepping(wandb, "--steps", "100000", "--pause", "0.05")
    first = create(client, endless).name
    assert eventually(lambda: bool(wandb.store.runs.all()) and len(run().history()) > 1)
    client.cancel_custom_job(name=first)
    assert ended(server, first).state == CANCELLED
    assert run().state == "running", "W&B does not know about the end"
    reached = len(run().history())
    again = stepping(wandb, "--steps", str(reached + 5), "--pause", "0", WANDB_RESUME="allow")
    second = create(client, again).name
    assert ended(server, second).state == SUCCEEDED, output(log, second)
    begun = int(output(log, second).split("begins at step ")[1].split()[0])
    assert begun >= reached > 1
    assert (run().state, [row["_step"] for row in run().history()]) == ("finished", list(range(reached + 5)))
    losses = [row["loss"] for row in run().history()]
    assert losses == sorted(losses, reverse=True), "what was learnt is not forgotten"


def test_a_program_whose_run_is_stopped_ends_by_itself(running: Running, wandb: WandbServer) -> None:
    """The SDK checks for a stop when it starts and then every 15 seconds. So the run is stopped before its start."""
    server, client, _ = running
    wandb.store.project("acme", "demo")
    run, _ = wandb.store.runs.upsert("acme", "demo", "run1", username="ada", state="pending")
    wandb.store.runs.stop(run)
    name = client.create_custom_job(parent=PARENT, custom_job=stepping(wandb, "--steps", "100000")).name
    stopped = ended(server, name)
    assert (stopped.state, stopped.error.message) == (FAILED, job_errors.exited(130).message)
    assert run.state == "killed"
