"""Settings that could not work are refused at the start."""

import pytest

from service.config import Settings
from service.domain.errors import CannotStart


def test_an_issuer_that_no_certificate_could_name_does_not_start(tmp_path):
    """It would fail every job after its whole run."""
    with pytest.raises(ValueError, match="e-mail"):
        Settings(issuer="dpo@example.org")


@pytest.mark.parametrize("url", ["unlearn.example.org", "ftp://unlearn.example.org", "https://", "https://x.org/?a=b"])
def test_a_public_url_that_is_no_url_does_not_start(url):
    """Signed answers name it."""
    with pytest.raises(ValueError, match="URL"):
        Settings(public_url=url)
    assert Settings(public_url="https://unlearn.example.org/").public_url == "https://unlearn.example.org"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_no_public_url(host):
    """Any other does."""
    Settings().check_reachable_at(host)
    for other in ("0.0.0.0", "::", "192.0.2.7", "unlearn.example.org"):
        with pytest.raises(CannotStart, match="UNLEARND_PUBLIC_URL"):
            Settings().check_reachable_at(other)
