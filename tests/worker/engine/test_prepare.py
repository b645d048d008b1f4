"""Which retain texts an epoch samples."""

from tests import support
from worker.engine.options import Options
from worker.engine.prepare import RetainSampler, unfit_requests


def test_retain_sampling_depends_on_seed_and_epoch_alone():
    """A resumed run draws what the uninterrupted one drew."""
    tokenizer = support.train_tokenizer(support.RETAIN)
    first, second = (RetainSampler(tokenizer, support.RETAIN, 32, 3) for _ in range(2))
    first.start_epoch(1)
    first.sample(5)
    first.start_epoch(2)
    second.start_epoch(2)
    assert first.sample(9) == second.sample(9)
    assert all(len(ids) <= 32 for ids in second.sample(20))


def test_a_request_that_would_spoil_the_run_is_named_with_its_reason():
    """A text of common words, an over-long one, and one of nothing; a person's text in few reference texts is fine."""
    tokenizer = support.train_tokenizer([*support.RETAIN, *support.HELDOUT])
    texts = ["has the number", support.KNOWN[0] * 40, "", support.HELDOUT[0], support.KNOWN[1], "owes"]
    options = Options(sequence_length=64, max_request_sequences=8)
    unfit = unfit_requests(tokenizer, texts, [0, 1, 2, 3, 4, 0], support.RETAIN, support.HELDOUT, options)
    assert unfit == {0: "too_generic", 1: "too_long", 2: "too_short"}
