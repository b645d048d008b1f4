"""Machines that share a folder, or a bucket and nothing else."""

import pytest

from service.bootstrap import open_storage
from service.config import Settings


@pytest.fixture(params=["folder", "bucket"])
def machine(request, tmp_path):
    """Storage as another machine has it: of the same folder, or of the same bucket with a folder of its own."""
    url = request.getfixturevalue("bucket_url") if request.param == "bucket" else ""

    def start(name: str, **settings):
        folder = tmp_path / (name if url else "shared")
        return open_storage(Settings(storage_dir=folder, storage_url=url, **settings))

    return start
