"""Which retain texts an epoch samples."""

from tests import support
from worker.engine.prepare import RetainSampler


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
