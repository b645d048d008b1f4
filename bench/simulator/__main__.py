"""Run one simulation and print its tables in Markdown."""

import argparse
import sys

from bench.data import machine
from bench.simulator.arrivals import Demand
from bench.simulator.costs import SPEEDS
from bench.simulator.fleet import FleetOptions
from bench.simulator.results import tables
from bench.simulator.run import Options, simulate
from service.observability import logging

HOUR = 3600.0


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.simulator", description=__doc__)
    add = made.add_argument
    add("--requests", type=int, default=2000, help="how many arrive")
    add("--models", type=int, default=20, help="how many models they are about")
    add("--hours", type=float, default=6, help="in how many hours they arrive, evenly")
    add("--backlog", type=float, default=0, help="the share of them that waits at the start")
    add("--due", type=float, nargs=2, default=(12, 720), help="the least and the most hours until one is due")
    add("--workers", type=int, default=20, help="compute workers, at most")
    add("--scaling", choices=("fixed", "keda"), default="fixed", help="always there, or started by the chart's query")
    add("--deaths", type=float, default=0, help="how often each worker is killed, an hour")
    add("--speed", choices=tuple(SPEEDS), default="neo", help="whose times the jobs take")
    add("--batch", type=int, default=32, help="max_batch_records of the policy")
    add("--earlier", type=int, default=0, help="requests of each model that were fulfilled before")
    add("--control", type=int, default=16, help="what the control workers do at once")
    add("--horizon", type=float, default=960, help="hours after which the run ends")
    return made


def options(arguments: list[str]) -> Options:
    """What a command line asks for."""
    given = parser().parse_args(arguments)
    low, high = given.due
    due = (low * HOUR, high * HOUR)
    demand = Demand(given.requests, given.models, given.hours * HOUR, due, backlog=given.backlog)
    fleet = FleetOptions(given.workers, given.scaling, given.deaths)
    return Options(
        demand,
        fleet,
        SPEEDS[given.speed],
        batch=given.batch,
        earlier=given.earlier,
        control_tasks=given.control,
        horizon=given.horizon * HOUR,
    )


def main() -> int:
    """Print the tables; how far it is goes to standard error."""
    logging.configure("ERROR")
    result = simulate(options(sys.argv[1:]), lambda line: print(line, file=sys.stderr, flush=True))
    print(f"    python -m bench.simulator {' '.join(sys.argv[1:])}\n\n{machine()}.\n")
    print(f"Times of jobs: {result.options.costs.source}\n\n{tables(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
