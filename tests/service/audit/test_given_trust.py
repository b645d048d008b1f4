"""A `trust.json` that somebody gives has a version and an end, so that an old one revives no key."""

import datetime as dt
import json
import shutil

import pytest
from typer.testing import CliRunner

from service.audit.receipt import verify_record
from service.audit.verification import CERTIFICATE, ExitCode, VerificationError
from service.audit.verify import verify
from service.audit.verify_log import verify_log
from service.cli import app
from tests.issuer import Issuer
from tests.service.audit.releases import EARLIER, refused, rewrite

pytestmark = pytest.mark.usefixtures("no_network")
STALE = {
    "expired": (lambda trust: trust.update(expires=EARLIER), f"expired at {EARLIER}"),
    "without an expiry": (lambda trust: trust.pop("expires"), "does not say when it expires"),
}


@pytest.fixture
def given(issuer, tmp_path):
    """The issuer's trust.json, as given out of band."""
    return shutil.copy(issuer.trust_path, tmp_path / "given.json")


@pytest.mark.parametrize("name", STALE)
def test_a_given_trust_that_may_be_outdated_is_refused(release, given, tmp_path, name):
    """By all four commands, with the same code, before they read anything else."""
    change, reason = STALE[name]
    rewrite(given, change)
    calls = [
        lambda: verify(release, given),
        lambda: verify_log(tmp_path / "log.jsonl", given),
        lambda: verify_record(tmp_path / "receipt.json", b"text", release, given),
    ]
    for call in calls:
        with pytest.raises(VerificationError) as caught:
            call()
        assert caught.value.code == ExitCode.UNTRUSTED_KEY
        assert reason in caught.value.reason
        assert caught.value.reason.endswith("get the current one from the issuer")
    page = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["render", str(release), "--trust", str(given), "--output", str(page)])
    assert (done.exit_code, page.exists()) == (ExitCode.UNTRUSTED_KEY, False)


@pytest.mark.parametrize("name", STALE)
def test_the_folders_own_trust_has_no_end(issuer, tmp_path, name):
    """It shows integrity only, and a release is kept for longer than a year."""
    release = issuer.release(tmp_path / "release")
    rewrite(release / "trust.json", STALE[name][0])
    assert verify(issuer.certify_folder(release)).own_trust


@pytest.mark.parametrize(
    "change",
    [
        lambda trust: trust.update(version="2"),
        lambda trust: trust.update(version=1e999),
        lambda trust: trust.update(version=True),
        lambda trust: trust.update(expires="soon"),
        lambda trust: trust.update(expires=5),
        lambda trust: trust.update(expires="2999-01-01T00:00:00"),
    ],
)
def test_nonsense_for_a_version_or_an_expiry_is_no_trust(release, given, change):
    """A text, infinity, a truth value; a time without a zone."""
    rewrite(given, change)
    assert refused(release, given).code == ExitCode.INCOMPLETE


def test_an_older_trust_than_the_releases_own_is_outdated(tmp_path):
    """It revives no key that the issuer has revoked since: the release names the newer version, signed."""
    issuer = Issuer(tmp_path / "keys")
    old = shutil.copy(issuer.trust_path, tmp_path / "old.json")
    before = issuer.release(tmp_path / "before")
    verify(before, old)
    issuer.keyring.rotate("receipt")
    release = issuer.release(tmp_path / "release")
    verify(release)
    verify(release, issuer.trust_path)
    verify(before, issuer.trust_path)
    refusal = refused(release, old)
    versions = [json.loads(file.read_bytes())["version"] for file in (old, issuer.trust_path)]
    assert versions[0] < versions[1]
    assert refusal.code == ExitCode.UNTRUSTED_KEY
    assert f"version {versions[0]} and the release was made with version {versions[1]}" in refusal.reason
    assert refusal.reason.endswith("get the current one from the issuer")


def test_a_strangers_version_says_nothing(tmp_path, issuer, given):
    """Only a trust.json that a trusted certificate lists can make the given one outdated."""
    release = issuer.release(tmp_path / "release")
    rewrite(release / "trust.json", lambda trust: trust.update(version=10**9))
    assert refused(release, given).code == ExitCode.ARTEFACT_MISMATCH
    assert (release / CERTIFICATE).exists()


def test_a_release_of_an_older_program_has_no_version(tmp_path, issuer, given):
    """It verifies with the issuer's trust.json of today."""
    release = issuer.release(tmp_path / "release")
    rewrite(release / "trust.json", lambda trust: [trust.pop("version"), trust.pop("expires")])
    verify(issuer.certify_folder(release), given)


def written(keyring) -> tuple[int, dt.timedelta]:
    """The version of a keyring's trust.json, and the time that is left until its end."""
    trust = json.loads(keyring.trust())
    return trust["version"], dt.datetime.fromisoformat(trust["expires"]) - dt.datetime.now(dt.UTC)


def test_the_version_counts_changes_and_nothing_else(tmp_path):
    """A start of the service changes nothing; a rotation and a revocation do."""
    keyring = Issuer(tmp_path / "keys").keyring
    first, left = written(keyring)
    assert dt.timedelta(days=364) < left <= dt.timedelta(days=365)
    content = keyring.trust()
    keyring.create()
    keyring.renew()
    assert keyring.trust() == content
    keyid = keyring.rotate("log")
    second, _ = written(keyring)
    keyring.revoke(keyid)
    assert first < second < written(keyring)[0]


@pytest.mark.parametrize("call", ["renew", "create"])
def test_a_trust_is_renewed_when_half_of_its_time_is_over(tmp_path, call):
    """Not before; a file of an older program at once. The keys stay as they are."""
    issuer = Issuer(tmp_path / "keys")
    keys, path = json.loads(issuer.keyring.trust())["keys"], issuer.trust_path

    def after(**changes) -> tuple[int, dt.timedelta]:
        rewrite(path, lambda trust: trust.update(version=7, **changes))
        getattr(issuer.keyring, call)()
        assert json.loads(path.read_bytes())["keys"] == keys
        return written(issuer.keyring)

    now = dt.datetime.now(dt.UTC)
    assert after(expires=(now + dt.timedelta(days=184)).isoformat())[0] == 7
    for expires in (now + dt.timedelta(days=182), now - dt.timedelta(days=1)):
        version, left = after(expires=expires.isoformat())
        assert (version, left > dt.timedelta(days=364)) == (8, True)
    rewrite(path, lambda trust: trust.pop("expires"))
    version, left = after()
    assert (version, left > dt.timedelta(days=364)) == (8, True)
