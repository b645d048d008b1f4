"""What may be asked without a key."""

from tests.service.api.submissions import REQUESTS, body


def test_health_metrics_and_openapi_need_no_key(api, model):
    """And say nothing personal."""
    api.post(REQUESTS, json=body())
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        answer = api.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert "Zoraida" not in answer.text
    assert 'unlearnd_requests{status="pending"} 1.0' in api.get("/metrics").text
    document = api.get("/openapi.json").json()
    assert document["components"]["schemas"]["RequestIn"]["examples"]
    assert "application/problem+json" in document["paths"][REQUESTS]["post"]["responses"]["422"]["content"]
