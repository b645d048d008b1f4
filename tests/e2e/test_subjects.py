"""An address in 3 of many records, one of them a near copy without it, becomes a forget set of all the copies."""

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
def halting():
    """A running stack whose processes halt at points, and the folder where these are armed."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-sub-") as place:
        points = Path(place) / "points"
        points.mkdir()
        running = Running(Path(place) / "data", UNLEARND_FAILPOINTS=str(points))
        try:
            yield running, points
        finally:
            assert running.stop() == 0


def kill_control(stack: Running) -> None:
    """SIGKILL the control worker and its beat."""
    for process in stack.processes("control"):
        process.send_signal(signal.SIGKILL)


def kill_control_while_it_indexes(stack: Running, points: Path, model: str) -> None:
    """Kill the control worker at the first commit after a third of the corpus; it must halt at "index.committed"."""
    while True:
        assert wait_until(lambda: any(points.glob("index.committed@*")), 120), stack.logs()[-3000:]
        if stack.client.corpus(model, "mail")["progress"] > 0.3:
            break
        (points / "index.committed").touch()
        for halted in points.glob("index.committed@*"):
            halted.unlink()
    kill_control(stack)


def corpus_with_letters(path: Path, count: int) -> Path:
    """A corpus of `count` records, the six letters among them, far apart."""
    texts = support.people(count - 6, seed=3)
    places = [count * share // 50_000 for share in (11, 25_000, 49_000, 17, 31_000, 48_000)]
    for place, text in zip(places, [*HERS, *HIS], strict=True):
        texts.insert(place, text)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def indexed_records(stack: Running, model: str) -> tuple[int, int]:
    """How many records of the model's corpus are indexed, and how many different ones."""
    query = (
        "SELECT count(*), count(DISTINCT start) FROM corpus_records WHERE corpus_id = "
        "(SELECT c.id FROM corpora c JOIN models m ON m.id = c.model_id WHERE m.name = %s)"
    )
    with psycopg.connect(postgres.url((stack.data / "run" / "sockets").resolve())) as connection:
        return connection.execute(query, [model]).fetchone()


@pytest.mark.slow
@pytest.mark.parametrize("count", [3_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_every_copy_of_a_person_is_found_among_many_and_unlearned(halting, folder, tmp_path, count):
    """The control worker is killed half-way through indexing; by address, and by its sha256; then the files tell.

    Of few records it halts after a commit, lest it be through before it is killed. Of many it is killed anywhere.
    """
    stack, points = halting
    name = f"letters-{count}"
    register(stack, folder, name, sequence_length=96)
    corpus = corpus_with_letters(tmp_path / "corpus.jsonl", count)
    client = stack.client
    if count < 50_000:
        (points / "index.committed").touch()
    client.add_corpus(name, "mail", str(corpus))
    early = client.submit(name, [], subject={"identities": [{"type": "email", "value": ADDRESSES[0]}]})
    if count < 50_000:
        kill_control_while_it_indexes(stack, points, name)
    else:
        assert wait_until(lambda: client.corpus(name, "mail")["progress"] > 0.3, 120)
        kill_control(stack)
    half = client.corpus(name, "mail")
    assert half["state"] == "indexing"
    assert client.request(early["id"])["waits_for"] == "resolve"
    assert wait_until(lambda: client.corpus(name, "mail")["state"] == "ready", 240), stack.logs()[-3000:]
    assert client.corpus(name, "mail")["records"] == count
    assert indexed_records(stack, name) == (count, count)
    digest = hashlib.sha256(ADDRESSES[1].encode()).hexdigest()
    identity = {"type": "email", "format": "sha256", "value": digest}
    later = client.submit(name, [], subject={"identities": [identity]})
    for request in (early, later):
        outcome = ended(stack, request, 240)
        assert (outcome["status"], outcome["verdict"], outcome["results_count"]) == ("completed", "PASS", 3), outcome
        assert outcome["searched"] == [{"corpus": "mail", "records": count}]
    assert not any(address in stack.logs() for address in ADDRESSES)

    the_published_model_does_not_say_them(stack, name, folder, tmp_path)


def the_published_model_does_not_say_them(stack, name, folder, tmp_path) -> None:
    """Measured here, on the downloaded files: under the held-out texts' 95th percentile, each of the six."""
    import numpy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from worker.engine import memorization_accuracy
    from worker.engine.data import encode, pad_batch

    stack.client.download(name, "latest", tmp_path / "release")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def accuracy(model, text: str) -> float:
        input_ids, _, _ = pad_batch([encode(tokenizer, text)])
        return float(memorization_accuracy(model, input_ids)[0])

    before = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "release" / "model").eval()
    limit = numpy.percentile([accuracy(before, text) for text in support.HELDOUT], 95)
    assert min(accuracy(before, text) for text in [*HERS, *HIS]) > 0.9 > limit
    assert max(accuracy(after, text) for text in [*HERS, *HIS]) <= limit + 0.02
