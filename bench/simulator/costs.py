"""How long the phases of a job take, from figures of `bench/RESULTS.md`."""

import random
from dataclasses import dataclass

from worker.engine.earlier import FEWEST_WATCHED
from worker.engine.options import Options


@dataclass(frozen=True)
class Costs:
    """The seconds of a job: a fixed part, a part for each record, and what earlier requests of the model add.

    Attributes:
        fixed: Seconds of every job, whatever it holds.
        per_record: Seconds for each of its records.
        per_watched: Seconds for each sequence of earlier requests that training watches. A job with earlier requests
            watches as many as it has records, 16 at least and 64 at most.
        per_earlier: Seconds for each earlier request.
        shares: Of measuring the parent, training, merging and verifying in that; they add up to 1.
        epochs: In how many equal parts training is saved.
        certify: Seconds of a control worker to certify.
        publish: The same to publish.
        source: Where the figures come from.
    """

    fixed: float
    per_record: float
    per_watched: float
    per_earlier: float
    epochs: int
    certify: float
    publish: float
    source: str
    shares: tuple[float, float, float, float] = (0.310, 0.434, 0.003, 0.253)  # `bench.real_job`: 246, 345, 2, 201 s

    def compute(self, records: int, earlier: float) -> float:
        """Seconds of a compute worker for a job with so many records and earlier requests."""
        watched = min(Options().earlier_sample, max(FEWEST_WATCHED, records)) if earlier else 0
        return self.fixed + self.per_record * records + self.per_watched * watched + self.per_earlier * earlier

    @property
    def control(self) -> float:
        """Seconds of a control worker for a job."""
        return self.certify + self.publish


SPEEDS = {
    "neo": Costs(
        fixed=81,
        per_record=15.8,
        per_watched=4.7,
        per_earlier=0.0218,
        epochs=16,
        certify=1,
        publish=1,
        source="GPT-Neo, 2.1M weights, one thread of a CPU. `bench.shapes`: 97 s with one request and 334 s with 16, so"
        " 81 s and 15.8 s a record. `bench.history`: 1,000 earlier requests, 64 of them watched, added 323 s to a run,"
        " of which 21.8 s grow with their number. Derived: the other 301 s are 4.7 s for each one watched. Certifying"
        " and publishing: 2 s, a guess.",
    ),
    "gemma": Costs(
        fixed=766,
        per_record=35.7,
        per_watched=108.3,
        per_earlier=0.32,
        epochs=4,
        certify=3,
        publish=3,
        source="125M weights, two cores. `bench.engine`: 383 s for EL of 32 sequences, so 766 s for 64 held-out ones;"
        " 759 s and those 383 s on the parent for 32 records. Derived, not measured: an earlier request that is"
        " watched costs as many measurements of EL as for `neo` (4.7 s are 9 of them, of 12 s here), and each earlier"
        " request two forward passes of 0.16 s. Certifying and publishing 500 MB: 6 s, a guess from `bench.verify`.",
    ),
}


def luck(seed: int, model: int, number: int) -> float:
    """The factor, 0.8 to 1.2, by which the job that makes this version differs from what it costs on average."""
    return random.Random(f"{seed}/{model}/{number}").uniform(0.8, 1.2)
