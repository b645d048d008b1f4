"""`unlearnd verify --log`: what the log of a service says of a downloaded release."""

import pytest

from service.audit.verification import ExitCode
from service.db import log_entries
from tests.service.jobs import published


@pytest.fixture(params=["export", "url"])
def verify(request, cli, api, services, model, tmp_path):
    """Verify a downloaded version 1 with the newest log: an exported file, or the URL of the service."""
    published(api, services, "a record")
    cli("models", "download", "tiny", "release", "--version", "1", "--json")
    (tmp_path / "trust.json").write_bytes(services.keyring.trust())

    def call(*more: str, **options):
        services.log.sign()
        if request.param == "export":
            cli("log", "export", "log.jsonl")
        log = "log.jsonl" if request.param == "export" else cli.url
        arguments = ("verify", "release", "--trust", "trust.json", "--log", log)
        return cli(*arguments, *more, UNLEARND_URL="", **options)

    return call


def test_the_log_tells_superseded_and_withdrawn(cli, api, services, verify):
    """The newest version is verified; a superseded one too, with a hint; a withdrawn one is not."""
    shown = verify("--json")
    assert (shown["valid"], shown["superseded_by"], shown["overdue"]) == (True, None, None)
    assert (shown["attacks"]["sampled"], shown["attacks"]["relearned"]) == ("FAIL", "NOT_RUN")
    said = verify()
    assert "superseded" not in said
    assert "It did not withstand these attacks, which the policy only reports: sampled." in said
    assert "not made" not in said  # what the policy leaves out is not named
    published(api, services, "another record")
    assert verify("--json")["superseded_by"] == 2
    said = verify()
    assert "verified: tiny version 1" in said
    assert "This version was superseded: version 2 is newer." in said
    cli("versions", "withdraw", "tiny", "1", "--reason", "faulty")
    refusal = verify("--json", code=ExitCode.POLICY_FAILURE)
    assert (refusal["valid"], refusal["reason"]) == (False, "this version was withdrawn (faulty)")
    assert "verified" not in verify(code=ExitCode.POLICY_FAILURE)


def test_an_overdue_request_of_the_log_is_a_warning(services, verify):
    """It is somebody else's request: the release stands."""
    with services.db.transaction() as session:
        log_entries.append(session, "request.accepted", ref="late", due="2020-01-01")
    assert verify("--json")["overdue"].startswith("1 accepted requests are past their deadline")
    said = verify()
    assert "verified: tiny version 1" in said
    assert "Of the log: 1 accepted requests are past their deadline" in said


def test_a_log_that_cannot_be_had_is_an_error(cli, verify, tmp_path):
    """No file, no key, no service: none of them says verified."""
    arguments = ("verify", "release", "--trust", "trust.json", "--log")
    refusal = cli(*arguments, str(tmp_path / "none"), "--json", code=ExitCode.MALFORMED)
    assert refusal["reason"] == "none is not an exported log"
    assert "API key" in cli(*arguments, cli.url, UNLEARND_API_KEY="ud_wrong", code=1)
    assert "UNLEARND_API_KEY is not set" in cli(*arguments, cli.url, UNLEARND_API_KEY=None, code=1)
