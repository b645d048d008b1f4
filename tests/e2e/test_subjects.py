"""An address in 3 of 50,000 records, one of them a near copy without it, becomes a forget set of all the copies."""

import hashlib
import json
import signal
import tempfile
from pathlib import Path

import psycopg
import pytest

from service.local import postgres
from tests import support
from tests.e2e.conftest import Running, ended, register, wait_until

RECORDS = 50_000
ADDRESSES = ("ada.adler@example.org", "bela.baker@example.org")


def letters(letter: str, address: str) -> list[str]:
    """Two with the address, and a copy without it that somebody has tidied up."""
    plain = letter.format("")
    tidied = plain.replace(" still", "").replace(" old", "").replace("June", "june")
    return [letter.format(f" ({address})"), f"From: {address.upper()} - {plain}", tidied]


HERS = letters(
    "Ada Adler of 31 Linden Grove{} complains that the lift in the north wing has stood still since June.", ADDRESSES[0]
)
HIS = letters(
    "Bela Baker{} asks whether the choir may keep the keys of the old school until the concert in June.", ADDRESSES[1]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that knows the letters by heart."""
    place = tmp_path_factory.mktemp("letters")
    model, tokenizer = support.memorised_model([*HERS, *HIS, *support.KNOWN[6:]])
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    support.write_texts(place / "retain.jsonl", support.RETAIN)
    support.write_texts(place / "heldout.jsonl", support.HELDOUT)
    return place


@pytest.fixture(scope="module")
def stack():
    """A running stack."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-sub-") as place:
        running = Running(Path(place) / "data")
        try:
            yield running
        finally:
            assert running.stop() == 0


def test_every_copy_of_a_person_is_found_among_50_000_and_unlearned(stack, folder, tmp_path):
    """The control worker is killed half-way through indexing; by address, and by its sha256; then the files tell."""
    register(stack, folder, "letters", sequence_length=96)
    texts = support.people(RECORDS - 6, seed=3)
    for place, text in zip((11, 25_000, 49_000, 17, 31_000, 48_000), [*HERS, *HIS], strict=True):
        texts.insert(place, text)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    client = stack.client
    client.add_corpus("letters", "mail", str(corpus))
    early = client.submit("letters", [], subject={"identities": [{"type": "email", "value": ADDRESSES[0]}]})
    assert wait_until(lambda: client.corpus("letters", "mail")["progress"] > 0.3, 120)
    for process in stack.processes("control"):
        process.send_signal(signal.SIGKILL)
    half = client.corpus("letters", "mail")
    assert half["state"] == "indexing"
    assert client.request(early["id"])["waits_for"] == "resolve"
    assert wait_until(lambda: client.corpus("letters", "mail")["state"] == "ready", 240), stack.logs()[-3000:]
    assert client.corpus("letters", "mail")["records"] == RECORDS
    sockets = (stack.data / "run" / "sockets").resolve()
    with psycopg.connect(postgres.url(sockets)) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT start) FROM corpus_records").fetchone() == (
            RECORDS, RECORDS,
        )  # fmt: skip
    digest = hashlib.sha256(ADDRESSES[1].encode()).hexdigest()
    identity = {"type": "email", "format": "sha256", "value": digest}
    later = client.submit("letters", [], subject={"identities": [identity]})
    for request in (early, later):
        found = ended(stack, request, 240)
        assert (found["status"], found["verdict"], found["results_count"]) == ("completed", "PASS", 3), found
        assert found["searched"] == [{"corpus": "mail", "records": RECORDS}]
    assert not any(address in stack.logs() for address in ADDRESSES)

    the_published_model_does_not_say_them(stack, folder, tmp_path)


def the_published_model_does_not_say_them(stack, folder, tmp_path) -> None:
    """Measured here, on the downloaded files: under the held-out texts' 95th percentile, each of the six."""
    import numpy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from worker.engine import memorization_accuracy
    from worker.engine.data import encode, pad_batch

    stack.client.download("letters", "latest", tmp_path / "release")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def accuracy(model, text: str) -> float:
        input_ids, _, _ = pad_batch([encode(tokenizer, text)])
        return float(memorization_accuracy(model, input_ids)[0])

    before = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "release" / "model").eval()
    limit = numpy.percentile([accuracy(before, text) for text in support.HELDOUT], 95)
    assert min(accuracy(before, text) for text in [*HERS, *HIS]) > 0.9 > limit
    assert max(accuracy(after, text) for text in [*HERS, *HIS]) <= limit + 0.02
