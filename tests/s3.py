"""Moto's S3 server in a process of its own, and what it holds as files."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.exceptions import ClientError

from service.local.process import wait_until
from tests.service.served import free_port

NAME, REGION = "unlearnd", "eu-central-1"


class S3Server:
    """Moto's server, with one bucket."""

    def __init__(self, log: Path) -> None:
        """Start it."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self.variables = {
            "AWS_ENDPOINT_URL": url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        assert wait_until(lambda: _answers(url), 60), log.read_text()
        self.client: Any = boto3.client(
            "s3", endpoint_url=url, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
        )
        self.client.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION})

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)

    def has(self, key: str) -> bool:
        """Whether there is an object."""
        return bool(self.client.list_objects_v2(Bucket=NAME, Prefix=key)["KeyCount"])

    def copy(self, target: Path) -> None:
        """Make a folder what the bucket holds, by its keys. What is there already is not fetched again."""
        listed: dict[str, str] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME):
            listed |= {item["Key"]: item["ETag"].strip('"') for item in page.get("Contents", [])}
        marks = target.with_name(f"{target.name}-etags")
        for folder in (target, marks):
            folder.mkdir(parents=True, exist_ok=True)
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target).as_posix() not in listed:
                path.unlink()
        for key, etag in listed.items():
            mark = marks / key.replace("/", "%")
            if (target / key).is_file() and mark.is_file() and mark.read_text() == etag:
                continue
            (target / key).parent.mkdir(parents=True, exist_ok=True)
            with suppress(ClientError):  # it was removed since
                self.client.download_file(NAME, key, str(target / key))
                mark.write_text(etag)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False
