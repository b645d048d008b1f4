"""The model that the stacks of these tests unlearn from."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(memorised_folder) -> Path:
    """The memorised model's folder with its corpora."""
    return memorised_folder
