"""The model that the stacks of these tests unlearn from."""

from pathlib import Path

import pytest

from tests import support


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The memorised model's folder with its corpora."""
    return support.model_folder(tmp_path_factory.mktemp("memorised"))
