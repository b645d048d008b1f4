"""How often a key may ask."""

from fastapi.testclient import TestClient

from service.main import create_app


def test_a_key_that_asks_too_often_is_told_when_to_come_back(services, new_key):
    """Another key, and OpenDSR, are not counted with it."""
    services.settings = services.settings.model_copy(update={"requests_per_minute": 5})
    first, second = ({"Authorization": f"Bearer {new_key('read')}"} for _ in range(2))
    with TestClient(create_app(services)) as client:
        codes = [client.get("/v1/jobs", headers=first).status_code for _ in range(8)]
        assert codes == [200] * 5 + [429] * 3
        refused = client.get("/v1/jobs", headers=first)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"] == f'"key";r=0;t={refused.headers["retry-after"]}'
        assert refused.json()["code"] == "too_many"
        assert client.get("/v1/jobs", headers=second).status_code == 200
        unknown = "/v2/requests/6f5ca2b0-3d3e-4f5c-9d6e-0b7a3c1d2e3f"
        assert [client.get(unknown, headers=first).status_code for _ in range(8)] == [404] * 8
