"""Witnesses cosign checkpoints that go on from what they have seen, and auditors check it offline."""

import json
import threading
import time
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
    """Each time with the proof from there; a checkpoint that it has cosigned is not sent again, until it is old."""
    witnesses = asking(services, witness)
    key = WitnessKey.parse(witness.vkey)
    for count in (1, 2, 5, 300):
        append(services, count)
        note = services.log.sign()
        witnesses.cosign(note)
        cosigned = witnesses.notes()[witness.name]
        assert cosigned.startswith(note)
        assert cosigned_at(cosigned, key) is not None
        assert witness.size == read_checkpoint(note).size
        witnesses.cosign(note)
    assert len(witness.asked) == 4
    assert witness.asked[0] == 0
    assert witnesses.late() == []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("service.evidence.witnesses.LATE", -timedelta(hours=1))
        assert witnesses.late() == [witness.name]
        patched.setattr("service.evidence.witnesses.AGAIN", -timedelta(hours=1))
        witnesses.cosign(note)
    assert len(witness.asked) == 5


def test_a_witness_that_remembers_more_or_less_says_so(services, witness):
    """After a lost answer, or with a new memory: the second call has the proof from its size."""
    append(services, 3)
    note = services.log.sign()
    witness.add(f"old 0\n\n{note}")
    append(services, 4)
    witnesses = asking(services, witness)
    witnesses.cosign(services.log.sign())
    assert witness.asked == [0, 0, 3]
    assert read_checkpoint(witnesses.notes()[witness.name]).size == witness.size == 7


def test_a_forked_log_is_not_cosigned(services, witness, caplog):
    """Though the issuer's own key has signed it."""
    append(services, 3)
    witnesses = asking(services, witness)
    witnesses.cosign(services.log.sign())
    before = witnesses.notes()
    append(services, 1)
    checkpoint = read_checkpoint(services.log.sign())
    forged = sign_checkpoint(type(checkpoint)(checkpoint.origin, checkpoint.size, bytes(32)), services.log.key)
    witnesses.cosign(forged)
    assert witnesses.notes() == before
    assert witness.size == 3
    assert "a witness did not cosign" in caplog.text


def test_one_that_is_away_or_lies_keeps_no_other_from_cosigning(services, witness, caplog):
    """What it has cosigned before stays; it is asked again the next time."""
    away, liar = (Witness(services.log.key.public_key(), name) for name in ("away", "liar"))
    append(services, 2)
    witnesses = asking(services, away, liar, witness)
    witnesses.cosign(services.log.sign())
    assert sorted(witnesses.notes()) == ["away", "liar", "witness.example"]
    away.stop()
    liar.cosigned = lambda text, at: Witness.cosigned(liar, "other\n", at)
    append(services, 2)
    witnesses.cosign(services.log.sign())
    sizes = {name: read_checkpoint(note).size for name, note in witnesses.notes().items()}
    assert sizes == {"away": 2, "liar": 2, "witness.example": 4}
    assert caplog.text.count("a witness did not cosign") == 2
    assert witnesses.late() == []
    stranger = Witness(services.log.key.public_key(), "stranger")
    stranger.stop()
    assert asking(services, stranger, witness).late() == ["stranger"]
    assert "The witness stranger" in "".join(finding.problem for finding in examine(services))
    liar.stop()


def test_a_slow_witness_holds_nobody_up(services, witness, caplog, monkeypatch):
    """It is given up after a while, whatever it sends meanwhile; nobody else waits behind it, and a worker may stop."""
    answer, asked = threading.Event(), threading.Event()
    monkeypatch.setattr("service.evidence.witnesses.ASK_SECONDS", 0.05)
    witness.add = lambda _: asked.set() or answer.wait(10) or (200, "")
    append(services, 1)
    note = services.log.sign()
    witnesses = asking(services, witness)
    witnesses.cosign(note, go_on=lambda: False)
    assert not asked.is_set()
    witnesses.cosign(note)
    assert "no answer" in caplog.text
    with witnesses._asking:
        witnesses.cosign(note)  # another thread still waits
    answer.set()


def export(api, path, **members):
    """What `unlearnd log export` writes, of the application."""
    note = api.get("/v1/log/checkpoint").text
    notes = [item["checkpoint"] for item in api.get("/v1/log/witnessed").json()["items"]]
    entries = api.get("/v1/log/entries", params={"limit": 200}).json()["items"]
    first = {"checkpoint": note, "witnessed": notes, **members}
    lines = (first, *entries[: read_checkpoint(note).size])
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def test_an_auditor_checks_the_cosignature_offline(api, services, witness, tmp_path):
    """By the witness' own key. Another witness, an old cosignature, or one of another log, is refused."""
    assert api.get("/v1/log/witnessed").json()["items"] == []
    append(services, 3)
    asking(services, witness).cosign(services.log.sign())
    append(services, 2)
    services.log.sign()
    trust = tmp_path / "trust.json"
    trust.write_bytes(services.keyring.trust())
    exported = export(api, tmp_path / "log.jsonl")
    verified = verify_log(exported, trust, witnesses=[witness.vkey])
    assert verified.checkpoint.size == verified.witnessed.size + 2
    command = ["verify-log", str(exported), "--trust", str(trust), "--witness", witness.vkey]
    answer = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(answer.stdout)["witnessed"]["size"] == verified.witnessed.size
    assert "cosigned by 1 witnesses" in CliRunner().invoke(app, command).stdout
    assert CliRunner().invoke(app, [*command, "--witnessed-within", "0"]).exit_code == ExitCode.LOG_FAILURE
    stranger = Witness(services.log.key.public_key(), "stranger")
    stranger.stop()
    checkpoint = read_checkpoint(api.get("/v1/log/checkpoint").text)
    other = type(checkpoint)(checkpoint.origin, checkpoint.size - 1, bytes(32))
    forked = sign_checkpoint(other, services.log.key) + witness.cosigned(other.body, int(time.time()))
    unsigned = f"{other.body}\n" + witness.cosigned(other.body, int(time.time()))
    for members, keys, code, reason in (
        ({}, [witness.vkey, stranger.vkey], ExitCode.LOG_FAILURE, "no checkpoint that stranger cosigned"),
        ({}, ["x"], ExitCode.LOG_FAILURE, "wrong length"),
        ({"witnessed": [forked]}, [witness.vkey], ExitCode.LOG_FAILURE, "EQUIVOCATION"),
        ({"witnessed": [unsigned]}, [witness.vkey], ExitCode.UNTRUSTED_KEY, "no trusted key"),
        ({"witnessed": []}, [witness.vkey], ExitCode.LOG_FAILURE, "no checkpoint that"),
        ({"witnessed": 1}, [witness.vkey], ExitCode.MALFORMED, "not an exported log"),
    ):
        with pytest.raises(VerificationError, match=reason) as refused:
            verify_log(export(api, exported, **members), trust, witnesses=keys)
        assert refused.value.code == code


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
    assert witnesses.notes() == {}
