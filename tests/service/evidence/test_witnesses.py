"""Witnesses cosign checkpoints that go on from what they have seen, and auditors check it offline."""

import json
from datetime import timedelta

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service.audit.checkpoint import read_checkpoint, sign_checkpoint
from service.audit.cosignature import WitnessKey, cosigned_at
from service.audit.merkle import LogError
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify_log import verify_log
from service.cli.console import app
from service.db import log_entries
from service.doctor import examine
from service.evidence.witnesses import Witnesses
from service.setting_types import Witness as Configured
from tests.witness import Witness


@pytest.fixture
def witness(services):
    """A witness of the service's log, on a real port."""
    started = Witness(services.log.key.public_key())
    yield started
    started.stop()


def append(services, count: int) -> None:
    """Some entries."""
    for number in range(count):
        with services.db.transaction() as session:
            log_entries.append(session, "test", number=number)


def asking(services, *witnesses: Witness, url: str | None = None) -> Witnesses:
    """The service's witnesses, as an operator has configured these."""
    configured = [Configured(url=url or witness.url, key=witness.vkey) for witness in witnesses]
    services.witnesses = Witnesses(configured, services.log._memory)
    return services.witnesses


def test_a_witness_cosigns_what_goes_on_from_what_it_cosigned_before(services, witness):
    """Each time with the proof from there; a checkpoint that it has cosigned is not sent again."""
    witnesses = asking(services, witness)
    key = WitnessKey.parse(witness.vkey)
    for count in (1, 2, 5, 300):
        append(services, count)
        note = services.log.sign()
        witnesses.cosign(note)
        cosigned = witnesses.note()
        assert cosigned.startswith(note)
        assert cosigned_at(cosigned, key) is not None
        assert witness.size == read_checkpoint(note).size
        witnesses.cosign(note)
    assert len(witness.asked) == 4
    assert witnesses.late() == []
    append(services, 1)
    services.log.sign()
    assert witnesses.late() == []  # not yet
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("service.evidence.witnesses.LATE", -timedelta(hours=1))
        assert witnesses.late() == [witness.name]
    assert witness.asked[0] == 0


def test_a_witness_that_remembers_more_or_less_says_so(services, witness):
    """After a lost answer, or with a new memory: the second call has the proof from its size."""
    append(services, 3)
    note = services.log.sign()
    witness.add(f"old 0\n\n{note}")
    append(services, 4)
    witnesses = asking(services, witness)
    witnesses.cosign(services.log.sign())
    assert witness.asked == [0, 0, 3]
    assert read_checkpoint(witnesses.note()).size == witness.size == 7


def test_a_forked_log_is_not_cosigned(services, witness, caplog):
    """Though the issuer's own key has signed it."""
    append(services, 3)
    witnesses = asking(services, witness)
    witnesses.cosign(services.log.sign())
    before = witnesses.note()
    append(services, 1)
    checkpoint = read_checkpoint(services.log.sign())
    forged = sign_checkpoint(type(checkpoint)(checkpoint.origin, checkpoint.size, bytes(32)), services.log.key)
    witnesses.cosign(forged)
    assert witnesses.note() == before
    assert witness.size == 3
    assert "a witness did not cosign" in caplog.text


def test_one_that_is_away_or_lies_keeps_no_other_from_cosigning(services, witness, caplog):
    """What the others have cosigned is kept; the one is asked again the next time."""
    away, liar = (Witness(services.log.key.public_key(), name) for name in ("away", "liar"))
    away.stop()
    liar.cosigned = lambda text, at: Witness.cosigned(liar, "other\n", at)
    append(services, 2)
    note = services.log.sign()
    witnesses = asking(services, away, liar, witness)
    witnesses.cosign(note)
    times = [cosigned_at(witnesses.note(), WitnessKey.parse(one.vkey)) for one in (away, liar, witness)]
    assert [time is not None for time in times] == [False, False, True]
    assert caplog.text.count("a witness did not cosign") == 2
    assert witnesses.late() == ["away", "liar"]
    assert "The witness away" in "".join(finding.problem for finding in examine(services))
    liar.stop()


def export(api, services, path):
    """What `unlearnd log export` writes, of the application."""
    notes = {name: api.get(f"/v1/log/{name}").text for name in ("checkpoint", "witnessed")}
    entries = api.get("/v1/log/entries", params={"limit": 200}).json()["items"]
    size = read_checkpoint(notes["checkpoint"]).size
    path.write_text("\n".join(json.dumps(line) for line in (notes, *entries[:size])) + "\n")
    return path


def test_an_auditor_checks_the_cosignature_offline(api, services, witness, tmp_path):
    """By the witness' own key. Another witness, or a log that does not begin with what was cosigned, is refused."""
    assert api.get("/v1/log/witnessed").status_code == 404
    append(services, 3)
    asking(services, witness).cosign(services.log.sign())
    append(services, 2)
    services.log.sign()
    trust = tmp_path / "trust.json"
    trust.write_bytes(services.keyring.trust())
    exported = export(api, services, tmp_path / "log.jsonl")
    verified = verify_log(exported, trust, witnesses=[witness.vkey])
    assert verified.checkpoint.size == verified.witnessed.size + 2
    answer = CliRunner().invoke(
        app, ["verify-log", str(exported), "--trust", str(trust), "--witness", witness.vkey, "--json"]
    )
    assert json.loads(answer.stdout)["witnessed"]["size"] == verified.witnessed.size
    stranger = Witness(services.log.key.public_key(), "stranger")
    stranger.stop()
    for keys, reason in (
        ([witness.vkey, stranger.vkey], "stranger did not cosign"),
        (["x"], "wrong length"),
    ):
        with pytest.raises(VerificationError, match=reason) as refused:
            verify_log(exported, trust, witnesses=keys)
        assert refused.value.code == ExitCode.LOG_FAILURE
    first, *rest = exported.read_text().splitlines()
    forged = json.loads(first)
    checkpoint = read_checkpoint(forged["witnessed"])
    other = type(checkpoint)(checkpoint.origin, checkpoint.size, bytes(32))
    forged["witnessed"] = sign_checkpoint(other, services.log.key) + witness.cosigned(other.body, 1)
    exported.write_text("\n".join([json.dumps(forged), *rest]) + "\n")
    with pytest.raises(VerificationError, match="EQUIVOCATION"):
        verify_log(exported, trust, witnesses=[witness.vkey])
    del forged["witnessed"]
    exported.write_text("\n".join([json.dumps(forged), *rest]) + "\n")
    with pytest.raises(VerificationError, match="no checkpoint that a witness cosigned"):
        verify_log(exported, trust, witnesses=[witness.vkey])


def test_a_changed_cosignature_is_invalid(services, witness):
    """Its time is signed, too."""
    append(services, 1)
    note = services.log.sign()
    body, key = read_checkpoint(note).body, WitnessKey.parse(witness.vkey)
    line = witness.cosigned(body, 1_700_000_000)
    assert cosigned_at(note + line, key).timestamp() == 1_700_000_000
    at_another = witness.cosigned(body, 1_700_000_001).split(" ")[2][:16] + line.split(" ")[2][16:]
    for changed in (line.replace(line.split(" ")[2].strip(), at_another.strip()), witness.cosigned("x", 1)):
        with pytest.raises(LogError, match="invalid"):
            cosigned_at(note + changed, key)


@pytest.mark.parametrize("key", ["", "a", "a+b+c", "witness+00000000+BAAA"])
def test_a_key_that_is_none_is_refused_with_the_settings(key):
    """Before anything is asked."""
    with pytest.raises(ValidationError, match="verifier key"):
        Configured(url="https://witness.example", key=key)


def test_a_new_log_begins_without_cosignatures(services, witness):
    """Those of the ended one are kept with it."""
    append(services, 2)
    witnesses = asking(services, witness)
    witnesses.cosign(services.log.sign())
    services.log.start_new_log()
    assert witnesses.note() is None
