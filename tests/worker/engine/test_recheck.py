"""A recheck measures each earlier request in full."""

import dataclasses

from tests import support
from worker.engine.options import Options
from worker.engine.prepare import prepare
from worker.engine.probes import Probe
from worker.engine.recheck import came_back, with_all_probes

OPTIONS = dataclasses.replace(Options.from_mapping(support.POLICY), earlier_sample=2)
UNKNOWN = support.people(5, seed=12)


def test_what_the_version_knows_comes_back_and_what_it_answers(memorised):
    """A text by EL and MA, however few a job would look at; a request of unseen text by its submitter's probe."""
    model, tokenizer = memorised
    known = support.KNOWN[1]
    records = [*zip(UNKNOWN, range(5), strict=True), (known, 5)]
    texts, requests = zip(*records, strict=True)
    sets = {"earlier_texts": texts, "earlier_request_ids": requests}
    data = prepare(tokenizer, [], [], support.RETAIN, support.HELDOUT, OPTIONS, **sets)
    unasked = dataclasses.replace(data, probes=[])
    assert came_back(model, tokenizer, unasked, OPTIONS) == [5]
    words = known.split()
    probe = Probe(" ".join(words[:-2]), " ".join(words[-2:]), 3)
    asked = with_all_probes(tokenizer, data, records, [probe], seed=0)
    assert asked.probes[0] == probe
    assert came_back(model, tokenizer, dataclasses.replace(asked, probes=[probe]), OPTIONS) == [3, 5]


def test_each_request_with_an_identifier_is_asked_once(memorised):
    """A job asks some of the earlier requests; a recheck asks all, unless reference text says the secret, too."""
    _, tokenizer = memorised
    records = [
        (f"{name} Smith can be reached at 555-010{number}.", number) for number, name in enumerate(support.FIRST)
    ]
    texts, requests = zip(*records, strict=True)
    sets = {"earlier_texts": texts, "earlier_request_ids": requests}
    retain, heldout = (
        [*file, text] for file, text in ((support.RETAIN, "Dial 555-0103."), (support.HELDOUT, "Or 555-0104."))
    )
    data = prepare(tokenizer, [], [], retain, heldout, OPTIONS, **sets)
    asked = [probe.request for probe in with_all_probes(tokenizer, data, records, [], seed=0).probes]
    assert asked == [request for request in requests if request not in (3, 4)]
