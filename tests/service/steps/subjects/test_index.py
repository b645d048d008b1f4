"""Indexing a corpus: killed and continued, unreadable files, and no readable text in the database."""

import os
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import select, text

from service.db import corpora
from service.db.corpus_tables import CorpusRecord
from service.steps.subjects.index import index_corpus, index_from_cursor
from service.subjects.identifiers import Hasher
from service.subjects.readers import CorpusReader
from tests import support
from tests.service.steps.subjects.corpus import ADDRESS, HERS, REQUESTS, by_email, corpus_body, fill, resolve, submit


def test_indexing_goes_on_where_it_was_killed_and_two_workers_do_not_index_twice(
    api, services, model, tmp_path, monkeypatch
):
    """A transaction that was cut off has left nothing."""
    texts = support.people(1200, seed=5)
    api.post(f"/v1/models/{model}/corpora", json=corpus_body(tmp_path, texts))
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    real = corpora.add_records

    def killed(session, rows):
        real(session, rows)
        if rows[-1]["start"] > 80_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "add_records", killed)
    with pytest.raises(KeyboardInterrupt):
        index_corpus(services, corpus_id)
    monkeypatch.undo()
    part = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert part["state"] == "indexing"
    assert 0 < part["records"] < len(texts)
    assert 0 < part["progress"] < 1
    calls = iter(range(100))

    def another_comes_between() -> bool:
        if next(calls) == 1:
            index_from_cursor(services, corpus_id, lambda: True)  # of another process
        return True

    index_corpus(services, corpus_id, go_on=another_comes_between)
    with services.db.reading() as session:
        starts = list(session.scalars(select(CorpusRecord.start)))
    assert len(starts) == len(set(starts)) == len(texts)
    done = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (done["state"], done["records"]) == ("ready", len(texts))


@pytest.mark.slow
def test_three_times_the_records_take_no_more_memory(api, services, model, tmp_path):
    """What is held at once while indexing is some hundred records, however many there are."""
    peaks = []
    for name, count in (("warm", 600), ("small", 1000), ("large", 3000)):
        body = corpus_body(tmp_path, support.people(count, seed=count), name=name)
        tracemalloc.start()
        fill(services, api, model, body)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        size = Path(body["path"]).stat().st_size
    assert peaks[2] < 1.25 * peaks[1], peaks
    assert size > 80 * 3000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"path": "/nowhere"}, "path"),
        ({"path": "relative"}, "path"),
        ({"columns": {"id": "shoe_size"}}, "columns.id"),
        ({"columns": {"mail": "email"}}, "columns"),
        ({"form": "csv"}, "path"),
        ({"text_column": "body"}, "path"),
        ({"name": "Bad Name"}, "name"),
        ({"phone_region": "de"}, "phone_region"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_at_once(api, model, tmp_path, changes, field):
    """Its first record is read before it is taken."""
    answer = api.post(f"/v1/models/{model}/corpora", json={**corpus_body(tmp_path, HERS), **changes})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


def test_a_corpus_that_breaks_off_says_where(api, services, model, tmp_path):
    """Its name is taken until it is removed."""
    body = corpus_body(tmp_path, support.people(600))
    with Path(body["path"]).open("a") as handle:
        handle.write("{broken\n")
    api.post(f"/v1/models/{model}/corpora", json=body)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    corpus = api.get(f"/v1/models/{model}/corpora").json()["items"][0]
    assert corpus["state"] == "failed"
    assert "is not a JSON object" in corpus["reason"]
    assert api.post(f"/v1/models/{model}/corpora", json=body).status_code == 409


def test_a_corpus_whose_reader_breaks_fails_with_the_kind_of_error(api, services, model, tmp_path, monkeypatch):
    """It may come from any library; an error of the database is none of the reader, and the step is tried again."""
    api.post(f"/v1/models/{model}/corpora", json=corpus_body(tmp_path, support.people(600)))
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)

    def broken(*_):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(corpora, "add_records", broken)
    with pytest.raises(ZeroDivisionError):
        index_corpus(services, corpus_id)
    monkeypatch.undo()
    assert api.get(f"/v1/models/{model}/corpora/crm").json()["state"] == "indexing"
    monkeypatch.setattr(CorpusReader, "make_row", broken)
    index_corpus(services, corpus_id)
    corpus = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (corpus["state"], corpus["reason"]) == ("failed", "it cannot be read (ZeroDivisionError)")


def test_nothing_in_the_database_can_be_read(api, services, filled):
    """Neither texts nor addresses, as text or as bytes."""
    submit(api, **by_email(), names=["Maria Example"])
    with services.db.reading() as session:
        for table in ("corpus_records", "deletion_requests", "records", "audit_entries", "corpora"):
            rows = "\n".join(session.scalars(text(f"SELECT row_to_json(t)::text FROM {table} t")))
            for secret in ("maria", "example.org", "Sample Street", "flooded"):
                for form in (secret, secret.encode().hex()):
                    assert form.lower() not in rows.lower(), (table, secret)


def test_look_ups_use_the_indexes(api, services, filled):
    """However many records there are."""
    hasher = Hasher(services.wrapper)
    with services.db.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        for condition in (
            f"identifiers && ARRAY[{hasher.identity('email', 'raw', ADDRESS)[0]}]::bigint[]",
            f"words @@ '{hasher.phrase('Maria Example')}'::tsquery",
            "bands && ARRAY[1]::bigint[]",
        ):
            plan = "\n".join(session.scalars(text(f"EXPLAIN SELECT id FROM corpus_records WHERE {condition}")))
            assert f"ix_corpus_records_{condition.split()[0]}" in plan, plan


PATHS = {
    "a key": lambda place: place / "keys" / "kek",
    "the storage": lambda place: place / "storage",
    "a folder that contains the keys": lambda place: place,
    "a file outside": lambda place: "/etc/passwd",
    "a way out by dots": lambda place: f"{place}{'/..' * 20}/etc/passwd",
    "a link out": lambda place: (place / "l").symlink_to("/etc/passwd") or place / "l",
    "a link to a key": lambda place: (place / "l").symlink_to("keys/kek") or place / "l",
    "a folder with a link out": lambda place: (
        (place / "c").mkdir() or (place / "c" / "l").symlink_to("/etc/passwd") or place / "c"
    ),
    "a relative path": lambda place: os.path.relpath(place / "crm.jsonl"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_corpus_is_read_from_a_root_alone(api, services, model, tmp_path, name):
    """Otherwise its beginning would be shown to whoever may approve."""
    body = {**corpus_body(tmp_path, HERS), "path": str(PATHS[name](tmp_path))}
    answer = api.post(f"/v1/models/{model}/corpora", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "outside_roots"), answer.text
    assert answer.json()["errors"][0]["field"] == "path"
    assert str(tmp_path) not in answer.text


def test_a_pipe_is_no_corpus(api, model, tmp_path):
    """It is refused at once, by itself and in a folder."""
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "p")
    for path in (tmp_path / "c", tmp_path / "c" / "p"):
        answer = api.post(f"/v1/models/{model}/corpora", json={"name": "crm", "path": str(path)})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "path")


def replace_by_link(tmp_path) -> None:
    """Put a link in the corpus' place, to a file of the service with the same bytes."""
    (tmp_path / "crm.jsonl").rename(tmp_path / "keys" / "crm.jsonl")
    (tmp_path / "crm.jsonl").symlink_to("keys/crm.jsonl")


def test_a_corpus_that_becomes_a_link_out_before_it_is_indexed_is_not_indexed(api, services, model, tmp_path):
    """The folder may change after the corpus was registered."""
    assert api.post(f"/v1/models/{model}/corpora", json=corpus_body(tmp_path, HERS)).status_code == 201
    replace_by_link(tmp_path)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    corpus = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (corpus["state"], corpus["records"]) == ("failed", 0)
    assert "own files" in corpus["reason"]


@pytest.mark.parametrize("how", ["it becomes a link out", "the operator names its folder no more"])
def test_an_indexed_corpus_outside_of_the_roots_is_read_no_more(api, services, filled, tmp_path, how):
    """The request waits and says why; nothing is shown of the file."""
    if how == "it becomes a link out":
        replace_by_link(tmp_path)
    else:
        services.settings.corpus_roots = str(tmp_path / "elsewhere")
    request = submit(api, **by_email())
    resolve(services, request["id"])
    state = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (state["waits_for"], state["reason"]) == ("resolve", "corpus_outside_roots: crm")
    preview = api.post(REQUESTS + ":preview", json={"model": "tiny", "subject": by_email()})
    assert (preview.status_code, "corpus_outside_roots" in preview.json()["detail"]) == (409, True)
