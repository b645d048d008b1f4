"""A CSV file is a request for each row: none is lost, none is made twice, and each refused row is named."""

import json
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select

from service.audit.commitments import commit
from service.cli.rows import RETRY_SECONDS
from service.db.tables import DeletionRequest
from tests.service.conftest import REQUESTS

TEXTS = 'text,reference,regulation,received_at\n"Zoraida Quill, 07700 900123",case 1,,2026-11-20T09:00:00Z\n'
TEXTS += '"two\nlines",case 2,ccpa,\n,,,\nthree,,,\n'


def submit(cli, content: str, *options: str, code: int = 0, encoding: str = "utf-8"):
    """Submit this content as people.csv."""
    Path("people.csv").write_text(content, encoding)
    return cli("requests", "submit", "--model", "tiny", "--file", "people.csv", *options, code=code)


def count(services) -> int:
    """How many requests are stored."""
    with services.db.reading() as session:
        return session.scalar(select(func.count()).select_from(DeletionRequest))


def test_a_row_is_a_request(cli, api, services, model, tmp_path):
    """With its own reference, regulation and date; the receipts are in a private file, a line for each row."""
    answers = submit(cli, TEXTS, "--receipt", "receipts.jsonl", "--json", encoding="utf-8-sig")
    assert [(answer["row"], answer["status"]) for answer in answers] == [(2, 202), (3, 202), (5, 202)]
    first, second, third = (api.get(f"{REQUESTS}/{answer['id']}").json() for answer in answers)
    assert (first["reference"], first["regulation"], first["received_at"]) == ("case 1", "gdpr", "2026-11-20T09:00:00Z")
    assert (second["reference"], second["regulation"]) == ("case 2", "ccpa")
    assert third["reference"] is None
    path = tmp_path / "receipts.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    receipts = [json.loads(line) for line in path.read_text().splitlines()]
    assert [receipt["id"] for receipt in receipts] == [answer["id"] for answer in answers]
    (opening,) = receipts[1]["receipt"]["records"]
    assert commit(bytes.fromhex(opening["nonce"]), b"two\nlines").hex() == opening["commitment"]


def test_the_same_file_again_makes_no_request(cli, services, model):
    """The same ids come back, although the call is another one."""
    first = submit(cli, TEXTS, "--json")
    assert submit(cli, TEXTS, "--json") == first
    assert count(services) == 3


def test_equal_rows_are_requests_of_their_own(cli, services, model):
    """Two rows are two requests, also when the file is submitted again."""
    rows = "text\nthe same\nthe same\n"
    first = submit(cli, rows, "--json")
    assert first[0]["id"] != first[1]["id"]
    assert submit(cli, rows, "--json") == first


def test_refused_rows_are_named_and_can_be_corrected(cli, services, model):
    """The others are accepted; with the prefix that the command names, the corrected file adds only what is missing."""
    shown = submit(cli, "text,received_at\none,\nZoraida Quill,yesterday\nthree,\n", code=1)
    assert "row 3: received_at" in shown
    assert "accepted     2" in shown
    assert "Zoraida" not in shown
    assert count(services) == 2
    prefix = shown.split("--idempotency-prefix")[1].split()[0].rstrip(".")
    corrected = "text,received_at\nZoraida Quill,2026-11-20T09:00:00Z\none,\nthree,\n"
    submit(cli, corrected, "--idempotency-prefix", prefix)
    assert count(services) == 3
    submit(cli, corrected)  # another file, and no prefix: new requests, as whoever starts anew expects
    assert count(services) == 6


def test_more_rows_than_a_call_takes(cli, services, model):
    """They go in several calls."""
    answers = submit(cli, "text\n" + "".join(f"record {i}\n" for i in range(450)), "--json")
    assert [answer["row"] for answer in answers] == list(range(2, 452))
    assert count(services) == 450


def test_rows_that_name_a_person(cli, services, model):
    """Without a corpus the service refuses them, and says so for each row."""
    answers = submit(cli, "email,phone,name\na@example.org,,\n,+49 30 123456,Maria Example\n", "--json", code=1)
    assert [(answer["row"], answer["status"]) for answer in answers] == [(2, 422), (3, 422)]
    assert {error["field"] for answer in answers for error in answer["problem"]["errors"]} == {"subject"}


BAD_FILES = {
    "text,recieved_at\nZoraida,\n": "column 2 must be one of",
    "text,text\nZoraida,b\n": "column 2 must be one of",
    "reference\nZoraida\n": "a column text, email, phone or name is needed",
    "text\nZoraida,2\n": "row 2 has more cells",
    'text\n"Zoraida\n': "not CSV",
    "text\n": "no row",
    "": "a column text",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_file_of_another_form_is_refused_whole(cli, services, model, content):
    """Before anything is sent; the message names a place and repeats no value."""
    message = submit(cli, content, code=1)
    assert BAD_FILES[content] in message
    assert "Zoraida" not in message
    assert count(services) == 0


def test_options_that_a_row_would_contradict_are_refused(cli, model):
    """A person on the command line and a file of people do not go together; the prefix is for a CSV file."""
    assert "each row" in submit(cli, TEXTS, "--email", "a@example.org", code=1)
    assert "CSV" in cli("requests", "submit", "--model", "tiny", "--text", "t", "--idempotency-prefix", "p", code=1)


def test_rows_that_are_refused_for_now_are_sent_again(cli, services, model, monkeypatch):
    """Rows that found no database are submitted a second time."""
    waited, statement, calls = [], services.db.statement, []
    monkeypatch.setattr("time.sleep", waited.append)

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise psycopg.OperationalError
        return statement(*arguments)

    services.db.statement = fails_once
    answers = submit(cli, "text\none\ntwo\n", "--json")
    assert [answer["status"] for answer in answers] == [202, 202]
    assert count(services) == 2
    assert RETRY_SECONDS[0] in waited
    assert len(calls) == 2
