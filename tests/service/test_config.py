"""Settings that could not work are refused at the start."""

import pytest

from service.config import Settings


def test_an_issuer_that_no_certificate_could_name_does_not_start(tmp_path):
    """It would fail every job after its whole run."""
    with pytest.raises(ValueError, match="e-mail"):
        Settings(issuer="dpo@example.org")
