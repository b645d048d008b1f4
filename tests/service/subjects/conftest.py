"""Keyed hashes."""

import os

import pytest

from service.privacy.envelope import FileKeyWrapper
from service.subjects.identifiers import Hasher


@pytest.fixture
def hasher(tmp_path):
    """Keyed hashes under a random key."""
    (tmp_path / "kek").write_bytes(os.urandom(32))
    return Hasher(FileKeyWrapper(tmp_path / "kek"))
