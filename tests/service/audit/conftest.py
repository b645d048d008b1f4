"""An issuer and a valid release of it."""

import pytest

from tests.issuer import Issuer


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    """Who issues."""
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def release(tmp_path, issuer):
    """A valid release folder."""
    return issuer.release(tmp_path / "release")
