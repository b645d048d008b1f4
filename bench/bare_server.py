"""The handler that `bench.load` compares with: FastAPI and psycopg, the same rows in one transaction, nothing else.

python -m bench.bare_server DATABASE_URL MODEL_ID API_KEY_ID
"""

import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

PATH = "/v1/deletion-requests"
INSERT_REQUEST = (
    "INSERT INTO deletion_requests (id, model_id, api_key_id, status, regulation, received_at, due_at, "
    "records_count, ref, commitment, wrapped_key, idempotency_hash, body_hash) VALUES (%s, %s, %s, "
    "'pending', 'gdpr', now(), now() + interval '1 month', %s, %s, %s, %s, %s, %s)"
)
INSERT_RECORD = "INSERT INTO records (request_id, position, sealed) VALUES (%s, %s, %s)"


class Text(BaseModel):
    """One record."""

    text: str


class Body(BaseModel):
    """A deletion request."""

    model: str
    records: list[Text]


def create_app(url: str, model_id: str, api_key_id: str) -> FastAPI:
    """An app with the bare handler."""
    pool = ConnectionPool(url, min_size=10, max_size=20, open=False)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool.open()
        yield
        pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH, status_code=202)
    def submit(body: Body) -> dict[str, str]:
        request_id = uuid4()
        hashes = (uuid4().hex, bytes(32), bytes(60), os.urandom(32), bytes(32))
        with pool.connection() as connection:
            connection.execute(INSERT_REQUEST, (request_id, model_id, api_key_id, len(body.records), *hashes))
            for position, record in enumerate(body.records):
                connection.execute(INSERT_RECORD, (request_id, position, record.text.encode()))
        return {"id": str(request_id), "status": "pending"}

    return app


def main() -> None:
    """Serve the bare handler on a free port, and print its URL."""
    url, model_id, api_key_id = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(create_app(url, model_id, api_key_id), access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
