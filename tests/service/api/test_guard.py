"""What is looked at before an endpoint: the key, query parameters, the media type, the form of the body."""

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service.api.guard import GuardedRoute
from service.main import ROUTERS, create_app
from tests.service.api.submissions import REQUESTS, SECRET, assert_problem, body

ID = "6f5ca2b0-3d3e-4f5c-9d6e-0b7a3c1d2e3f"
VALUES = {"job_id": ID, "request_id": ID, "key_id": ID, "subject_request_id": ID, "number": "0", "path": "x"}
OPERATIONS = sorted(
    (method, route.path)
    for router in ROUTERS
    for route in router.routes
    for method in route.methods
    if not route.path.startswith("/hub") and method != "HEAD"
)


def fill_in(path: str) -> str:
    """A path with a value for each of its parameters."""
    names = [part.strip("{}").removesuffix(":path") for part in path.split("/") if part.startswith("{")]
    for name in names:
        path = path.replace(f"{{{name}:path}}", VALUES["path"]).replace(f"{{{name}}}", VALUES.get(name, "tiny"))
    return path


def test_every_endpoint_is_guarded():
    """A router that forgot its route class would read bodies of strangers."""
    assert len(OPERATIONS) > 40
    assert all(isinstance(route, GuardedRoute) for router in ROUTERS for route in router.routes)
    assert all(isinstance(route, APIRoute) for router in ROUTERS for route in router.routes)


def test_unknown_query_parameters_are_refused_everywhere(api):
    """By name, unless the name may be personal data. OpenDSR answers 400, as it does for everything."""
    for method, path in OPERATIONS:
        answer = api.request(method, fill_in(path), params={"limitt": "1", SECRET: "x"})
        is_signed = path.startswith(("/v2/", "/v1/opengdpr", "/v1/discovery")) and path != "/v2/certificate.pem"
        assert answer.status_code == (400 if is_signed else 422), path
        assert "limitt" in answer.text, path
        assert "There is no such query parameter" in answer.text
        assert "900123" not in answer.text


def test_a_known_parameter_may_come_with_no_other(api, model):
    """The error lists what there is."""
    assert api.get(REQUESTS, params={"limit": 1, "model": "tiny"}).status_code == 200
    problem = assert_problem(api.get(REQUESTS, params={"due": "x"}), 422, "due")
    assert problem["errors"][0]["message"] == (
        "There is no such query parameter. Known: cursor, due_before, job, limit, model, owed, received_before, "
        "received_from, reference, regulation, status, waits_for."
    )


def test_the_hub_accepts_what_its_clients_send(api, model):
    """They ask for more than this hub has."""
    assert api.get("/hub/api/models/any/tiny", params={"blobs": "true", "expand": "x"}).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_media_type_is_named(api, model, media_type):
    """415 says which one is expected; a type that is JSON with a name of its own is taken."""
    headers = {"Content-Type": media_type} if media_type else {}
    answer = api.post(REQUESTS, content=b'{"model": "tiny"}', headers=headers)
    problem = assert_problem(answer, 415, "Content-Type")
    assert "application/json" in problem["detail"]
    json_type = {"Content-Type": "application/vnd.example+json; charset=utf-8"}
    assert_problem(api.post(REQUESTS, content=b'{"model": "tiny"}', headers=json_type), 422, "records")


def test_invalid_json_is_named_by_line_and_column(api, model):
    """The text of the body is not in the answer."""
    content = f'{{\n  "model": "tiny",\n  "records": [{{"text": "{SECRET}"}}\n}}'.encode()
    answer = api.post(REQUESTS, content=content, headers={"Content-Type": "application/json"})
    (error,) = assert_problem(answer, 422, "body")["errors"]
    assert error["message"] == "The body is not valid JSON: line 4, column 1."


@pytest.mark.parametrize(
    ("sent", "field", "form"),
    [
        ({"text": SECRET}, "model", '"records": [{"text": "'),
        ([SECRET], "body", '"records": [{"text": "'),
        (body(records=[SECRET]), "records.0", 'Expected: {"text": "..."}'),
        (body(records=SECRET), "records", 'Expected: [{"text": "..."}]'),
        (body(records=[{"content": SECRET}]), "records.0.text", 'Expected: {"text": "..."}'),
        (body(subject={"identities": [SECRET]}), "subject.identities.0", '"type": "controller_customer_id"'),
        (None, "body", '"records": [{"text": "'),
    ],
    ids=str,
)
def test_a_body_of_another_form_is_shown_the_right_one(api, model, sent, field, form):
    """At the place where it differs, and without its values."""
    problem = assert_problem(api.post(REQUESTS, json=sent) if sent else api.post(REQUESTS), 422, field)
    assert form in next(error["message"] for error in problem["errors"] if error["field"] == field)


def test_an_answer_lists_twenty_errors(api, model):
    """And says how many more there are; a list ends at its first error."""
    errors = assert_problem(api.post(REQUESTS, json=body(**{f"x{i}": i for i in range(70)})), 422, "x0")["errors"]
    assert len(errors) == 21
    assert errors[-1]["message"] == "And 50 more errors."
    errors = assert_problem(api.post(REQUESTS, json=body(records=[7] * 100)), 422, "records.0")["errors"]
    assert len(errors) == 1
    errors = assert_problem(api.get(REQUESTS, params={f"x{i}": i for i in range(30)}), 422, "x0")["errors"]
    assert errors[-1]["message"] == "And 10 more errors."


def test_every_list_and_mapping_of_a_body_is_bounded(services):
    """By the OpenAPI document, from each request body through all that it refers to."""
    document = create_app(services).openapi()
    unbounded = []

    def look(schema: dict, place: str, seen: frozenset[str]) -> None:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name and name not in seen:
            look(document["components"]["schemas"][name], name, seen | {name})
        for key in ("anyOf", "allOf", "oneOf"):
            for part in schema.get(key, []):
                look(part, place, seen)
        for field, part in schema.get("properties", {}).items():
            look(part, f"{place}.{field}", seen)
        if schema.get("type") == "array":
            unbounded.extend([] if "maxItems" in schema else [place])
            look(schema["items"], place, seen)
        if isinstance(schema.get("additionalProperties", False), dict) or schema.get("additionalProperties") is True:
            unbounded.extend([] if "maxProperties" in schema else [place])

    bodies = [
        content["schema"]
        for path in document["paths"].values()
        for operation in path.values()
        for content in operation.get("requestBody", {"content": {}})["content"].values()
    ]
    assert len(bodies) > 8
    for schema in bodies:
        look(schema, "body", frozenset())
    assert not unbounded


def test_the_key_is_asked_for_before_anything_else(services, model):
    """Whatever else is wrong, a stranger hears about the key alone."""
    with TestClient(create_app(services)) as stranger:
        for method, path in OPERATIONS:
            if path.startswith(("/connect/datagrail", "/connect/transcend")):
                continue
            answer = stranger.request(method, fill_in(path), content=b"\xff", params={"no": "such"})
            opened = path in ("/livez", "/readyz", "/v2/discovery", "/v1/discovery", "/v2/certificate.pem")
            assert answer.status_code in ((400, 422) if opened else (401,)), (method, path)
