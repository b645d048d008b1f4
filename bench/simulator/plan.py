"""What one model clears, and what a million records a day need: computed from the times of jobs, without a run.

    python -m bench.simulator.plan --kills 1.05

`--kills` is how many times a job's seconds the workers need where workers are killed: a run prints it.
"""

import argparse
from math import sqrt

from bench.simulator.costs import SPEEDS, Costs

MONTH = 30 * 86_400
CUSTODY_MONTHS = 3  # UNLEARND_CUSTODY_DAYS is 90
ROWS = (("neo", 32), ("gemma", 32), ("gemma", 64), ("gemma", 256), ("gemma", 1000))


def first_month(costs: Costs, batch: int) -> int:
    """Records that a model clears on one device in 30 days, if it has no earlier requests when they begin."""
    seconds, cleared = 0.0, 0
    while (seconds := seconds + costs.compute(batch, cleared) + costs.control) <= MONTH:
        cleared += batch
    return cleared


def steady_month(costs: Costs, batch: int) -> float:
    """Records that a model clears on one device in 30 days, once it keeps the texts of three months of them.

    It is the r with r * (compute(batch, 3 r) + control) = batch * 30 days.
    """
    slope = CUSTODY_MONTHS * costs.per_earlier
    rest = costs.compute(batch, 1) - costs.per_earlier + costs.control  # of a job, whatever their number
    return (sqrt(rest**2 + 4 * slope * batch * MONTH) - rest) / (2 * slope)


def workers(costs: Costs, batch: int, a_day: int, models: int, kills: float) -> tuple[float, float, float]:
    """What full batches about so many equal models need in the long run, with so many records of all a day.

    Returns:
        The earlier requests of each model, a job's seconds, and how many workers are busy at once.
    """
    earlier = CUSTODY_MONTHS * 30 * a_day / models
    seconds = costs.compute(batch, earlier)
    return earlier, seconds, a_day / batch * seconds * kills / 86_400


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulator.plan")
    parser.add_argument("--kills", type=float, required=True, help="seconds of workers a second of a job")
    kills = parser.parse_args().kills
    print("| times | records in a job | first 30 days | 30 days in the long run |\n|---|---|---|---|")
    for speed, batch in ROWS:
        costs = SPEEDS[speed]
        print(f"| {speed} | {batch:,} | {first_month(costs, batch):,} | {steady_month(costs, batch):,.0f} |")
    print("\n| models | earlier requests of each | seconds of a job of 64 | workers |\n|---|---|---|---|")
    for models in (4500, 10_000, 100_000):
        earlier, seconds, busy = workers(SPEEDS["gemma"], 64, 1_000_000, models, kills)
        print(f"| {models:,} | {earlier:,.0f} | {seconds:,.0f} | {busy:,.0f} |")


if __name__ == "__main__":
    main()
