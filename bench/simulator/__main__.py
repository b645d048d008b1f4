"""Run one simulation and print its tables in Markdown."""

import argparse
import sys

from bench.data import machine
from bench.simulator.arrivals import Demand
from bench.simulator.costs import SPEEDS
from bench.simulator.fleet import FleetOptions
from bench.simulator.results import tables
from bench.simulator.run import Options, simulate

HOUR = 3600.0


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.simulator", description=__doc__)
    add = made.add_argument
    add("--requests", type=int, default=2000, help="how many arrive")
    add("--models", type=int, default=20, help="how many models they are about")
    add("--skew", type=float, default=0.0, help="exponent of the models' sizes (Zipf); 0: all alike")
    add("--hours", type=float, default=6, help="in how many hours they arrive, evenly")
    add("--backlog", type=float, default=0, help="the share of them that waits at the start")
    add("--due", type=float, nargs=2, default=(12, 720), help="the least and the most hours until one is due")
    add("--workers", type=int, default=20, help="compute workers, at most")
    add("--scaling", choices=("fixed", "keda"), default="fixed", help="always there, or started by the chart's query")
    add("--deaths", type=float, default=0, help="how often each worker is killed, an hour")
    add("--speed", choices=tuple(SPEEDS), default="neo", help="whose times the jobs take")
    add("--batch", type=int, default=32, help="max_batch_records of the policy")
    add("--wait", type=float, default=900, help="max_wait_seconds of the policy")
    add("--earlier", type=int, default=0, help="requests of each model that were fulfilled before")
    add("--control", type=int, default=16, help="what the control workers do at once")
    add("--sweep", type=float, default=30, help="UNLEARND_SWEEP_SECONDS")
    add("--tick", type=float, default=60, help="seconds between two insertions of what has arrived")
    add("--horizon", type=float, default=960, help="hours after which the run ends")
    add("--full-every", type=int, default=1, help="one in so many jobs writes everything, the others a statement each")
    add("--every-beat", action="store_true", help="write each heartbeat")
    add("--seed", type=int, default=0, help="of the random numbers")
    return made


def options(arguments: list[str]) -> Options:
    """What a command line asks for."""
    given = parser().parse_args(arguments)
    low, high = given.due
    demand = Demand(
        given.requests,
        given.models,
        given.skew,
        given.hours * HOUR,
        (low * HOUR, high * HOUR),
        given.seed,
        given.backlog,
    )
    fleet = FleetOptions(given.workers, given.scaling, given.deaths, every_beat=given.every_beat, seed=given.seed)
    return Options(
        demand,
        fleet,
        SPEEDS[given.speed],
        batch=given.batch,
        max_wait_seconds=given.wait,
        earlier=given.earlier,
        control_tasks=given.control,
        sweep_seconds=given.sweep,
        full_every=given.full_every,
        tick_seconds=given.tick,
        horizon=given.horizon * HOUR,
    )


def main() -> int:
    """Print the tables; how far it is goes to standard error."""
    result = simulate(options(sys.argv[1:]), lambda line: print(line, file=sys.stderr, flush=True))
    print(f"    python -m bench.simulator {' '.join(sys.argv[1:])}\n\n{machine()}.\n")
    print(f"Times of jobs: {result.options.costs.source}\n\n{tables(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
