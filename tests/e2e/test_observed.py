"""A request's trace from its POST to its callback, the metrics, and the board that shows them."""

import json
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.local.process import wait_until
from tests import support
from tests.e2e.conftest import Running, ended, register
from tests.receiver import receiving

TRACE, OTHER = "0af7651916cd43dd8448eb211c80319c", "ab" * 16
LISTED = ("unlearnd.", "http.method", "http.request.method", "http.route", "http.status_code", "http.response.")
BOARD = json.loads((Path(__file__).parents[2] / "docker" / "grafana.json").read_text())
STEPS = {"POST /v1/deletion-requests", "batch", "unlearn", "merge", "verify", "certify", "publish", "deliver"}


@pytest.fixture(scope="module")
def world(folder):
    """A stack that tells its traces to a collector, which is a receiver of ours."""
    with receiving() as receiver, tempfile.TemporaryDirectory(prefix="unlearnd-otel-") as place:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        stack = Running(Path(place) / "data", **settings)
        register(stack, folder, "traced", max_batch_records=2, max_wait_seconds=600)
        yield stack, receiver, _two_requests(stack, receiver)
        assert stack.stop() == 0


def _two_requests(stack: Running, receiver) -> list[dict]:
    """Two that go into one job; the first is due first, and each comes with a trace of its caller's."""
    key = Path(stack.endpoint["api_key_file"]).read_text()
    requests = []
    for i, trace in enumerate((TRACE, OTHER)):
        headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        received = datetime.now(UTC) - timedelta(days=1 - i)
        body = {
            "model": "traced",
            "records": [{"text": support.KNOWN[i]}],
            "callback_url": f"{receiver.url}/told",
            "received_at": received.isoformat(),
        }
        requests.append(
            httpx.post(f"{stack.endpoint['url']}/v1/deletion-requests", json=body, headers=headers, timeout=60)
        )
    return [ended(stack, request.json()) for request in requests]


def spans(receiver) -> list:
    """(part, span) of everything that was exported."""
    rows = []
    for call in receiver.to("/v1/traces"):
        for group in ExportTraceServiceRequest.FromString(call.body).resource_spans:
            names = {a.key: a.value.string_value for a in group.resource.attributes}
            rows += [(names["service.name"], span) for scope in group.scope_spans for span in scope.spans]
    return rows


@pytest.mark.slow
def test_one_trace_leads_from_the_post_to_the_callback(world):
    """It goes on from the caller's; each step is in it, by the part that did it; another request is linked to it."""
    stack, receiver, requests = world
    assert [request["status"] for request in requests] == ["completed"] * 2
    assert requests[0]["job_id"] == requests[1]["job_id"]

    def ours() -> dict:
        return {span.name: (part, span) for part, span in spans(receiver) if span.trace_id.hex() == TRACE}

    assert wait_until(lambda: set(ours()) >= STEPS, 30), set(ours())
    parts = {name: ours()[name][0] for name in STEPS}
    compute = {"unlearn", "merge", "verify"}
    assert {name for name, part in parts.items() if part == "unlearnd-compute"} == compute
    assert {name for name, part in parts.items() if part == "unlearnd-api"} == {"POST /v1/deletion-requests"}
    ids = {span.span_id for _, span in ours().values()}
    assert ours()["batch"][1].parent_span_id in ids
    assert ours()["publish"][1].parent_span_id == ours()["batch"][1].span_id
    assert [link.trace_id.hex() for link in ours()["batch"][1].links] == [OTHER]
    order = [
        ours()[name][1].start_time_unix_nano for name in ("batch", "unlearn", "merge", "verify", "certify", "publish")
    ]
    assert order == sorted(order)
    exported = b"".join(call.body for call in receiver.to("/v1/traces"))
    for text in support.KNOWN[:2]:
        assert text.split()[0].encode() not in exported
    assert b"/told" not in exported
    for _, span in spans(receiver):
        assert not span.events
        assert all(attribute.key.startswith(LISTED) for attribute in span.attributes), span
    assert f"trace={TRACE}" in stack.logs()


@pytest.mark.slow
def test_the_board_shows_every_metric_and_no_other(world, folder):
    """Their names, labels and values are those of `/metrics` on a stack that has worked."""
    register(world[0], folder, "waits", max_wait_seconds=3600)
    world[0].client.submit("waits", [support.KNOWN[3]])  # open, so that there is a next deadline
    exposed = httpx.get(f"{world[0].endpoint['url']}/metrics", timeout=60).text
    names = set(re.findall(r"^(unlearnd_\w+)", exposed, re.M))
    asked = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    assert {name for expr in asked for name in re.findall(r"unlearnd_\w+", expr)} == names
    for expr in asked:
        (name,) = re.findall(r"unlearnd_\w+", expr)
        lines = "\n".join(line for line in exposed.splitlines() if line.startswith(name))
        for labels in re.findall(r"by \((.*?)\)", expr):
            assert all(f'{label}="' in lines for label in labels.split(", ")), (expr, lines)
        for selector in re.findall(r'\w+="\w+"', expr):
            assert selector in lines, (expr, lines)
    assert 'unlearnd_model_version{model="traced"} 1.0' in exposed
    assert 'value="after"' not in exposed  # of two requests: nobody's numbers
