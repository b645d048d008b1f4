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


@pytest.mark.parametrize("hosts", ["db", "db:5432", "a,b", "a:5432,b:5433", "[::1]:5432,b"])
def test_a_database_may_have_several_hosts(hosts):
    """As libpq writes them."""
    url = f"postgresql://unlearnd:a%40b@{hosts}/unlearnd?connect_timeout=2"
    assert Settings(database_url=url).database_url == url


@pytest.mark.parametrize("hosts", ["a:x,b", "a,b:0", "a:1:2"])
def test_a_port_that_is_none_does_not_start(hosts):
    """Neither the first host's nor another's."""
    with pytest.raises(ValueError, match="percent-encoded"):
        Settings(database_url=f"postgresql://unlearnd@{hosts}/unlearnd")
