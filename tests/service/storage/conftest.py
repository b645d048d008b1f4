"""A real S3 server, and machines that share a bucket of it and nothing else."""

from uuid import uuid4

import boto3
import pytest

from service.bootstrap import open_storage
from service.config import Settings


@pytest.fixture(scope="session")
def s3():
    """The variables of a server that speaks the API of S3, over HTTP, with a bucket `unlearnd`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    client.create_bucket(Bucket="unlearnd", CreateBucketConfiguration={"LocationConstraint": variables["AWS_REGION"]})
    yield variables
    server.stop()


@pytest.fixture
def bucket_url(s3, monkeypatch) -> str:
    """An empty prefix of the bucket, with the variables that lead there."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"s3://unlearnd/{uuid4().hex}"


@pytest.fixture(params=["folder", "bucket"])
def machine(request, tmp_path):
    """Storage as another machine has it: of the same folder, or of the same bucket with a folder of its own."""
    url = request.getfixturevalue("bucket_url") if request.param == "bucket" else ""

    def start(name: str, **settings):
        folder = tmp_path / (name if url else "shared")
        return open_storage(Settings(storage_dir=folder, storage_url=url, **settings))

    return start
