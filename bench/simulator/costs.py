"""How long the phases of a job take, from figures of `bench/RESULTS.md`."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """The seconds of a job: a fixed part, a part for each record, and what earlier requests of the model add.

    Attributes:
        fixed: Seconds of every job, whatever it holds.
        per_record: Seconds for each of its records.
        earlier_fixed: Seconds of a job if there are earlier requests: those of them that training looks at.
        per_earlier: Seconds for each earlier request.
        shares: Of measuring the parent, training, merging and verifying in that; they add up to 1.
        epochs: In how many equal parts training is saved.
        certify: Seconds of a control worker to certify.
        publish: The same to publish.
        source: Where the figures come from.
    """

    fixed: float
    per_record: float
    earlier_fixed: float
    per_earlier: float
    epochs: int
    certify: float
    publish: float
    source: str
    shares: tuple[float, float, float, float] = (0.310, 0.434, 0.003, 0.253)  # `bench.real_job`: 246, 345, 2, 201 s

    def compute(self, records: int, earlier: int) -> float:
        """Seconds of a compute worker for a job with so many records and earlier requests."""
        seconds = self.fixed + self.per_record * records + self.per_earlier * earlier
        return seconds + (self.earlier_fixed if earlier else 0)

    @property
    def control(self) -> float:
        """Seconds of a control worker for a job."""
        return self.certify + self.publish


SPEEDS = {
    "neo": Costs(
        fixed=81,
        per_record=15.8,
        earlier_fixed=301,
        per_earlier=0.0218,
        epochs=16,
        certify=1,
        publish=1,
        source="GPT-Neo, 2.1M weights, one thread of a CPU. `bench.shapes`: 97 s with one request and 334 s with 16, so"
        " 81 s and 15.8 s a record. `bench.history`: 1,000 earlier requests add 323 s to a run, of which 21.8 s grow"
        " with their number. Certifying and publishing: 2 s, a guess.",
    ),
    "gemma": Costs(
        fixed=766,
        per_record=35.7,
        earlier_fixed=6930,
        per_earlier=0.32,
        epochs=4,
        certify=3,
        publish=3,
        source="125M weights, two cores. `bench.engine`: 383 s for EL of 32 sequences, so 766 s for 64 held-out ones;"
        " 759 s and those 383 s on the parent for 32 records. Derived, not measured: earlier requests cost what"
        " `bench.history` found, counted in measurements of EL (301 s are 579 of them, of 12 s here), and two forward"
        " passes of 0.16 s each. Certifying and publishing 500 MB: 6 s, a guess from `bench.verify`.",
    ),
}


def luck(seed: int, model: int, number: int) -> float:
    """The factor, 0.8 to 1.2, by which the job that makes this version differs from what it costs on average."""
    return random.Random(f"{seed}/{model}/{number}").uniform(0.8, 1.2)
