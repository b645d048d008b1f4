"""The figures of a run, as rows of tables in Markdown."""

from collections import Counter

from bench.simulator.perfect import best_ends, missed
from bench.simulator.run import Result
from bench.simulator.watch import share
from service.domain.states import RequestStatus, Stage

MONTH = 30 * 86_400
PROGRESS_SECONDS, PROGRESS_WRITES = (
    0.5,
    100,
)  # least between two writes, most of one worker on one job: `worker.steps.run`


def percent(value: float | None) -> str:
    """A share in percent; a dash if there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def by_operation(result: Result) -> dict[str, tuple[int, float, float]]:
    """Operation -> how often it was done, how often it was only counted, and its mean in milliseconds."""
    meter, sweep = result.meter, result.options.sweep_seconds
    counted = dict(meter.counted)
    if result.options.fleet.scaling == "fixed":
        counted["claim, no job"] = result.watch.seconds["idle"] / sweep
    claims = counted.get("unlearn", 0) + meter.done["unlearn"]
    writes = min(result.watch.seconds["busy"] / PROGRESS_SECONDS, PROGRESS_WRITES * claims)
    counted["progress"] = max(0.0, writes - meter.done["progress"])
    return {name: (meter.done[name], counted.get(name, 0.0), 1000 * meter.mean(name)) for name in sorted(meter.done)}


def load(result: Result, *, progress: bool) -> tuple[float, float]:
    """Operations a virtual second, and seconds that they take the client and the server in one; with what is counted.

    Args:
        result: The run.
        progress: Whether every worker writes its progress as often as it may.
    """
    operations = seconds = 0.0
    for name, (done, counted, milliseconds) in by_operation(result).items():
        if name.startswith("short") or name == "nothing" or (name == "progress" and not progress):
            continue
        operations += done + counted
        seconds += (done + counted) * milliseconds / 1000
    return operations / result.seconds, seconds / result.seconds


def summary(result: Result) -> dict[str, str]:
    """Name -> value, of a run."""
    options, watch, ends = result.options, result.watch, result.ends
    statuses = Counter(end.status for end in ends)
    cleared = statuses[RequestStatus.COMPLETED]
    late = missed(result.arrivals, [end.at for end in ends])
    kept = best_ends(
        result.arrivals,
        options.fleet.workers,
        options.batch,
        options.costs,
        earlier=options.earlier,
        seed=options.demand.seed,
    )
    within = {number for number, arrival in enumerate(result.arrivals[: len(ends)]) if arrival.due <= result.seconds}
    avoidable = (late & within) - missed(result.arrivals, kept)
    jobs_done = result.stages.get(Stage.DONE, 0)
    waits, (operations, seconds) = watch.while_jobs_wait, load(result, progress=False)
    most_operations, most_seconds = load(result, progress=True)
    return {
        "requests that arrived": f"{len(ends):,}",
        "cleared": f"{cleared:,}",
        "cleared in 30 days at this rate": f"{cleared * MONTH / result.seconds:,.0f}",
        "jobs done, requests in each": f"{jobs_done:,}, {cleared / jobs_done if jobs_done else 0:.1f}",
        "jobs that failed": f"{result.stages.get(Stage.QUARANTINED, 0)}",
        "virtual time": f"{result.seconds / 3600:,.1f} h",
        "workers at most, busy at most": f"{watch.alive_at_most:,}, {watch.busy_at_most:,}",
        "busy while a job waits": f"{percent(share(waits))}, in {waits['time'] / 3600:.1f} h",
        "busy of as many as there may be, while a job waits": percent(
            waits["busy"] / (waits["time"] * options.fleet.workers) if waits["time"] else None
        ),
        "busy while a request waits": percent(share(watch.while_requests_wait)),
        "workers killed, with a job": f"{result.fleet.deaths:,}, {result.fleet.deaths_with_job:,}",
        "deadlines in the time, missed": f"{len(within):,}, {len(late & within):,}",
        "missed that the perfect scheduler keeps": f"{len(avoidable):,}",
        "missed by the perfect scheduler": f"{len(missed(result.arrivals, kept)):,} of all {len(kept):,}",
        "control tasks at once, in line, at most": f"{result.control.busy_at_most}, {result.control.line_at_most}",
        "operations on the database a virtual second": f"{operations:.1f}, with all progress {most_operations:.1f}",
        "seconds of one client and server in that": f"{seconds:.3f}, with all progress {most_seconds:.3f}",
        "the server's CPU, what was done": f"{result.cpu_seconds:.0f} s for {result.transactions:,} transactions",
        "wall time": f"{result.wall_seconds / 60:.1f} min",
    }


def tables(result: Result) -> str:
    """A run's figures and the operations on the database, as two tables."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in summary(result).items()), ""]
    lines += ["| operation | done | only counted | ms |", "|---|---|---|---|"]
    for name, (done, counted, milliseconds) in by_operation(result).items():
        lines.append(f"| {name} | {done:,} | {counted:,.0f} | {milliseconds:.1f} |")
    return "\n".join(lines)
