"""Which keys count, and when."""

import datetime as dt
import json
import shutil
from pathlib import Path

import pytest

from service.audit.dsse import IN_TOTO
from service.audit.verification import CERTIFICATE, ExitCode
from service.audit.verify import MODEL_SIGNATURE, PROOF, verify
from service.evidence.keyring import NoSuchKey
from tests.issuer import Issuer, release_payload
from tests.service.audit.releases import LATER, mark, refused, rewrite

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("role", "reason"), [("certificate", CERTIFICATE), ("release", MODEL_SIGNATURE), ("log", PROOF)]
)
def test_a_key_that_the_issuer_has_revoked_since(release, issuer, tmp_path, role, reason):
    """Whichever of the three: the trust.json that was given out of band says so, the folder's own cannot know."""
    (tmp_path / "trust.json").write_bytes(issuer.keyring.trust())
    mark(tmp_path, role, revoked_at=LATER)
    refusal = refused(release, tmp_path / "trust.json")
    assert (refusal.code, reason in refusal.reason) == (ExitCode.UNTRUSTED_KEY, True), refusal.reason
    assert verify(release).own_trust


def test_a_strangers_key_is_untrusted(tmp_path, release, issuer):
    """A release signed by another key, trust.json and all, does not pass against the issuer's trust."""
    forged = Issuer(tmp_path / "other").release(tmp_path / "forged")
    assert verify(forged).own_trust
    assert refused(forged, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY


def test_an_unknown_key_that_comes_with_its_public_half(release, issuer, tmp_path):
    """A second signature by a key that trust.json does not name makes it untrusted, whatever the first is."""
    both = json.loads((release / CERTIFICATE).read_bytes())
    other = Issuer(tmp_path / "other").keyring.sign("certificate", release_payload(release), IN_TOTO)
    both["signatures"] += json.loads(other)["signatures"]
    (release / CERTIFICATE).write_text(json.dumps(both))
    assert refused(release, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY


def test_two_owners_must_both_have_signed(tmp_path):
    """With two certificate keys both sign; one under two names is refused, one alone is not enough; before, it was."""
    two = Issuer(tmp_path / "keys")
    two.at -= dt.timedelta(seconds=10)
    alone = two.release(tmp_path / "alone")
    shutil.copy(Issuer(tmp_path / "second").keyring.path("certificate"), tmp_path / "keys" / "certificate-second.pem")
    two.keyring.create()
    needed = json.loads(two.keyring.trust())["certificate_keys_needed"]
    assert [n["count"] for n in needed] == [1, 2]
    verify(alone, two.trust_path)
    two.at += dt.timedelta(seconds=20)
    release = two.release(tmp_path / "release")
    assert len(verify(release).keyids) == 2
    envelope = json.loads((release / CERTIFICATE).read_bytes())
    first, second = envelope["signatures"]
    (release / CERTIFICATE).write_text(json.dumps({**envelope, "signatures": [first]}))
    refusal = refused(two.enter(release))
    assert (refusal.code, refusal.reason) == (ExitCode.UNTRUSTED_KEY, "1 certificate keys have signed, 2 are required")
    twice = {**envelope, "signatures": [first, {**first, "keyid": "e" * 64}]}
    (release / CERTIFICATE).write_text(json.dumps(twice))
    trust = tmp_path / "trust.json"
    shutil.copy(two.trust_path, trust)
    rewrite(trust, lambda t: t["keys"].append({**t["keys"][0], "keyid": "e" * 64}))
    refusal = refused(release, trust)  # a keyid is its key's digest: no key can be listed under two
    assert (refusal.code, "trust.json" in refusal.reason) == (ExitCode.INCOMPLETE, True)
    assert refused(release, two.trust_path).code == ExitCode.UNTRUSTED_KEY
    broken = {**envelope, "signatures": [first, {**second, "sig": first["sig"]}]}
    (release / CERTIFICATE).write_text(json.dumps(broken))
    assert refused(release).code == ExitCode.BAD_SIGNATURE
    two.keyring.rotate("certificate-second")
    (keyid,) = [k["keyid"] for k in json.loads(two.keyring.trust())["keys"] if k["keyid"] == second["keyid"]]
    two.keyring.revoke(keyid)
    later = two.release(tmp_path / "later")
    assert len(verify(later, two.trust_path).keyids) == 2


@pytest.mark.parametrize("role", ["certificate", "release", "log", "receipt"])
@pytest.mark.parametrize("ending", ["rotate", "revoke"])
def test_a_key_replacement_that_was_killed_is_finished_later(tmp_path, role, ending):
    """Between the mark and the new key: whatever comes next destroys the old private key and makes another."""
    keyring = Issuer(tmp_path / "keys").keyring
    old = keyring.path(role).read_bytes()
    (entry,) = [k for k in json.loads(keyring.trust())["keys"] if k["role"] == role]
    keyring._mark(entry["keyid"], "retired_at" if ending == "rotate" else "revoked_at", dt.datetime.now(dt.UTC))
    assert keyring.path(role).read_bytes() == old
    keyring.create()
    assert keyring.path(role).read_bytes() != old
    keyring.path(role).unlink()
    keyring.rotate(role)
    assert len([k for k in json.loads(keyring.trust())["keys"] if k["role"] == role]) == 4
    for wrong in ("kek", "certificate-nobody", "trust"):
        with pytest.raises(NoSuchKey):
            keyring.rotate(wrong)
    with pytest.raises(NoSuchKey):
        keyring.revoke("0" * 64)


def test_a_retired_key_counts_for_what_the_log_had_before(tmp_path):
    """After rotation the old release is still good; a record made with the old key afterwards is not, however dated."""
    issuer = Issuer(tmp_path / "keys")
    release = issuer.release(tmp_path / "release")
    old = issuer.keyring.path("certificate").read_bytes()
    for role in ("certificate", "release", "log"):
        issuer.keyring.rotate(role)
    verify(release, issuer.trust_path)
    issuer.at += dt.timedelta(seconds=1)
    assert issuer.keyring.path("certificate").read_bytes() != old
    newer = issuer.release(tmp_path / "newer")
    verify(newer, issuer.trust_path)
    given = tmp_path / "trust.json"
    shutil.copy(issuer.trust_path, given)
    issuer.keyring.path("certificate").write_bytes(old)  # a thief, who has the log's ear, but not its clock
    late = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    for name, issued, reason in (
        ("late", late, "the certificate key was not valid"),
        ("dated back", issuer.at - dt.timedelta(days=1), "not close to the time of its log entry"),
        ("dated forward", late + dt.timedelta(hours=1), "not close to the time of its log entry"),
    ):
        logged, issuer.at = issuer.at, late
        refusal = refused(
            issuer.release(tmp_path / name, issued_at=issued - dt.timedelta(days=name == "dated back")), given
        )
        issuer.at = logged
        assert (refusal.code, reason in refusal.reason) == (ExitCode.UNTRUSTED_KEY, True), (name, refusal.reason)


def test_a_log_key_does_not_count_after_it_was_retired(tmp_path):
    """Who has the old one cannot take a record into the log that has gone on with another."""
    issuer = Issuer(tmp_path / "keys")
    old = issuer.keyring.path("log").read_bytes()
    issuer.keyring.rotate("log")
    given = shutil.copy(issuer.trust_path, tmp_path / "trust.json")
    issuer.keyring.path("log").write_bytes(old)
    issuer.at = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    refusal = refused(issuer.release(tmp_path / "late"), Path(given))
    assert (refusal.code, refusal.reason) == (
        ExitCode.UNTRUSTED_KEY,
        "the log key was not valid when the certificate was logged",
    )


def test_a_key_does_not_count_before_it_was_made(tmp_path):
    """A record dated and logged before its keys existed."""
    issuer = Issuer(tmp_path / "keys")
    issuer.at -= dt.timedelta(days=1)
    assert "was not valid" in refused(issuer.release(tmp_path / "release")).reason


def test_a_revoked_key_counts_for_nothing(tmp_path):
    """Not even for what it signed before: dating back is what a thief would do."""
    issuer = Issuer(tmp_path / "keys")
    release = issuer.release(tmp_path / "release")
    (keyid,) = verify(release).keyids
    issuer.keyring.revoke(keyid)
    assert refused(release, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY
    verify(issuer.release(tmp_path / "newer"), issuer.trust_path)
