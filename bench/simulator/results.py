"""The figures of a run, as rows of tables in Markdown."""

from collections import Counter

from bench.simulator.reference import Plan, missed
from bench.simulator.run import Result
from service.domain.states import RequestStatus, Stage
from worker.steps.run import PROGRESS_INTERVAL, PROGRESS_STEP


def by_operation(result: Result) -> dict[str, tuple[int, float, float]]:
    """Operation -> how often it was done, how often it was only counted, and its mean in milliseconds.

    Every worker writes its progress as often as it may.
    """
    meter, counted = result.meter, dict(result.meter.counted)
    if result.options.fleet.scaling == "fixed":
        counted["claim, no job"] = result.watch.seconds["idle"] / result.options.sweep_seconds
    writes = min(result.watch.seconds["busy"] / PROGRESS_INTERVAL, meter.done["unlearn"] / PROGRESS_STEP)
    counted["progress"] = max(0.0, writes - meter.done["progress"])
    return {name: (meter.done[name], counted.get(name, 0.0), 1000 * meter.mean(name)) for name in sorted(meter.done)}


def load(result: Result) -> str:
    """Operations a virtual second, those only counted included, and the seconds that they take."""
    table = by_operation(result)
    operations = {name: (done + counted) / result.seconds for name, (done, counted, _) in table.items()}
    seconds = sum(operations[name] * milliseconds / 1000 for name, (_, _, milliseconds) in table.items())
    beats, progress = operations.get("heartbeat", 0.0), operations.get("progress", 0.0)
    return f"{sum(operations.values()):.1f} ({beats:.1f} heartbeats, {progress:.1f} progress), {seconds:.3f} s"


def deadlines(result: Result) -> dict[str, str]:
    """Which deadlines fell due in the run, and which of them were missed here and in the reference plan."""
    options, ends, arrivals = result.options, result.ends, result.arrivals
    due = {number for number, arrival in enumerate(arrivals[: len(ends)]) if arrival.due <= result.seconds}
    if not due:
        return {"deadlines": "none fell due"}
    late = missed(arrivals, [end.at if end.status == RequestStatus.COMPLETED else None for end in ends]) & due
    demand, fleet = options.demand, options.fleet
    plan = Plan(arrivals, fleet.workers, options.batch, options.costs, earlier=options.earlier, seed=demand.seed)
    late_in_plan = missed(arrivals, plan.ends()) & due
    return {
        "deadlines that fell due, missed": f"{len(due):,}, {len(late):,}",
        "missed by the reference plan": f"{len(late_in_plan):,}",
        "missed that the reference plan keeps": f"{len(late - late_in_plan):,}",
    }


def summary(result: Result) -> dict[str, str]:
    """Name -> value, of a run."""
    options, watch = result.options, result.watch
    cleared = Counter(end.status for end in result.ends)[RequestStatus.COMPLETED]
    jobs_done, costs = result.stages.get(Stage.DONE, 0), sum(result.costs.values())
    is_whole = not watch.waiting and costs > 0
    return {
        "requests that arrived": f"{len(result.ends):,}",
        "cleared": f"{cleared:,}",
        "jobs done, requests in each": f"{jobs_done:,}, {cleared / max(1, jobs_done):.1f}",
        "jobs that failed": f"{result.stages.get(Stage.QUARANTINED, 0)}",
        "virtual time": f"{result.seconds / 3600:,.1f} h",
        "workers at most, busy at most": f"{watch.alive_at_most:,}, {watch.busy_at_most:,}",
        f"busy of {options.fleet.workers:,} while a job waits": busy(watch.jobs_wait, options.fleet.workers),
        f"busy of {options.fleet.workers:,} while a request waits": busy(watch.requests_wait, options.fleet.workers),
        "workers killed, with a job": f"{result.fleet.deaths:,}, {result.fleet.deaths_with_job:,}",
        "seconds of workers a second of a job": f"{watch.seconds['busy'] / costs:.3f}" if is_whole else "-",
        **deadlines(result),
        "control tasks at once, in line, at most": f"{result.control.busy_at_most}, {result.control.line_at_most:,}",
        "operations a virtual second, time for them": load(result),
        "wall time": f"{result.wall_seconds / 60:.1f} min",
    }


def busy(total: dict[str, float], workers: int) -> str:
    """The share of all workers that there may be, and the hours over which it is the mean."""
    if not total["time"]:
        return "no such time"
    return f"{100 * total['busy'] / (total['time'] * workers):.1f} %, {total['time'] / 3600:.1f} h"


def tables(result: Result) -> str:
    """A run's figures and the operations on the database, as two tables."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in summary(result).items()), ""]
    lines += ["| operation | done | only counted | ms |", "|---|---|---|---|"]
    for name, (done, counted, milliseconds) in by_operation(result).items():
        lines.append(f"| {name} | {done:,} | {counted:,.0f} | {milliseconds:.1f} |")
    return "\n".join(lines)
