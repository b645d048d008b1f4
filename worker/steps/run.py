"""Running the compute child: the job goes in through a pipe, JSON lines come out and are stored under the fence.

The child gets the texts on its standard input and has no database and no key (`worker.steps.sandbox`). Its input pipe
stays open while this process lives. The child ends when the pipe closes, so a killed worker leaves no child behind.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeAlias
from uuid import UUID

from opentelemetry import trace

from service.bootstrap import Services
from service.collected import Rebuilding
from service.db import jobs
from service.domain.errors import LostLease, StorageAway
from service.domain.job_input import JobInput
from service.domain.json_types import JsonObject
from service.domain.report import BaselineSummary, ChildReport
from service.domain.states import Stage
from service.lease import Lease, fail_attempt, hand_back, lose_attempt
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.schemas.report import read_report
from service.steps.path.compute_input import check_files, check_reference_texts, compute_input
from service.steps.path.unlearn import (
    job_progress,
    store_epoch,
    store_progress,
    store_put_off,
    store_rejected,
    store_stage,
    store_thresholds,
)
from service.steps.path.verify import store_report
from worker.app import stopping
from worker.steps.messages import check_message, read_messages
from worker.steps.sandbox import Sandbox, child_environment, host_sandbox

logger = get_logger(__name__)
Child: TypeAlias = "subprocess.Popen[bytes]"
Messages: TypeAlias = "queue.SimpleQueue[JsonObject | None]"
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the kernel for memory, or somebody
KILLED = {code for number in FROM_OUTSIDE for code in (-number, 128 + number)}  # the second as a sandbox says it
PROGRESS_INTERVAL, PROGRESS_STEP = 0.5, 0.0025  # seconds, and part of the job, between progress writes
WATCH_INTERVAL = 0.2  # seconds between checks for a lost lease or a stop


def run_job(services: Services, lease: Lease) -> None:
    """Run the compute stages of a claimed job until their report, or hand the job back.

    If requests are put off, the job begins again without them: at least one stays each time.
    """
    check_reference_texts(services, lease.job_id)
    try:
        check_files(services, lease.job_id)
    except Rebuilding:
        hand_back(services, lease, delay_seconds=services.settings.sweep_seconds)
        return
    while _run_child(services, lease):
        pass


def _run_child(services: Services, lease: Lease) -> bool:
    """Run a compute child to its end; true if the job begins again, because requests were put off."""
    with working_child(services, lease, compute_input) as (child, inputs):
        return _store_messages(services, lease, child, inputs)


@contextlib.contextmanager
def working_child(
    services: Services, lease: Lease, read_input: Callable[[Services, UUID, int], JobInput]
) -> Iterator[tuple[Child, JobInput]]:
    """A compute child and its input, inside the block; afterwards it is killed."""
    with contextlib.ExitStack() as stack:
        stack.callback(services.storage.leave_work, lease.job_id, lease.fence)
        inputs = read_input(services, lease.job_id, lease.fence)
        child = start_child(inputs, confined=services.settings.compute_sandbox != "off", devices=lease.slot.devices)
        stack.callback(_close_input, child)
        stack.callback(end_child, child)
        # In a thread: a child that hangs before it reads must not block this process on a full pipe.
        threading.Thread(
            target=_write_input, args=(child, json.dumps(asdict(inputs)).encode() + b"\n"), daemon=True
        ).start()
        yield child, inputs


def end_child(child: Child) -> int:
    """Kill the child and what it started: its process group, and its process namespace where the host makes one.

    Returns the exit status: that of the child's own end if it has ended already.
    """
    if child.returncode is None:  # nobody else gets its number before `wait`
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def _write_input(child: Child, inputs: bytes) -> None:
    """Write the job to the child's standard input, which stays open."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the child died; its closed output reports that
        child.stdin.write(inputs)
        child.stdin.flush()


def start_child(inputs: JobInput, *, confined: bool, devices: Sequence[str] = ()) -> Child:
    """Start the child with the listed variables, on its slot's devices; inside what the host enforces if `confined`."""
    work = Path(inputs.work)
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    points = [Path(os.environ["UNLEARND_FAILPOINTS"])] if "UNLEARND_FAILPOINTS" in os.environ else []
    paths = [inputs.first, inputs.parent, inputs.retain, inputs.heldout, *inputs.neighbours]
    paths += [inputs.base] if inputs.base else []
    command = (host_sandbox() if confined else Sandbox()).command(
        [sys.executable, "-m", "worker.child"],
        readable=[Path(path) for path in paths],
        writable=[work.parent, *points],  # with the folders of the job's earlier attempts, which this one takes over
        several=inputs.policy.get("devices", 1) != 1,
    )
    environment = child_environment(os.environ, temporary)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0)


def _store_messages(services: Services, lease: Lease, child: Child, inputs: JobInput) -> bool:
    """Store the child's messages until it reports or dies, the worker stops, or the lease is lost.

    Returns:
        Whether the job begins again, because requests were put off.
    """
    with _MessageStore(services, lease, inputs) as message_store:
        try:
            for message in child_messages(child, lease):
                _keep_work(services, lease, message)
                if message_store.store(message):
                    return bool(message["type"] == "put_off")
        except ChildDied:
            fail_attempt(services, lease, "child_died", permanent=False)
            return False
        except ChildKilled:
            lose_attempt(services, lease, "child_killed")
            return False
        hand_back(services, lease)
        return False


class ChildDied(Exception):
    """The compute child ended by itself, without a last message."""


class ChildKilled(Exception):
    """Something outside the compute child ended it."""


def _close_input(child: Child) -> None:
    """Close an ended child's standard input; it may not have read all of it."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()


def child_messages(child: Child, lease: Lease) -> Iterator[JsonObject]:
    """The messages of a child, each one a step of its lease, until this process stops.

    Raises:
        LostLease: Nothing more is to be done for the job.
        ChildDied: The child has ended.
        ChildKilled: It was killed.
        PermanentJobError: It sent what a child does not send.
    """
    assert child.stdout is not None
    messages: Messages = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(child.stdout, messages), daemon=True).start()
    while not stopping.is_set():
        if lease.lost.is_set():
            raise LostLease(f"job {lease.job_id}")
        try:
            message = messages.get(timeout=WATCH_INTERVAL)
        except queue.Empty:
            continue
        if message is None:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it may still be about to end
            if end_child(child) not in KILLED:
                raise ChildDied
            if not stopping.is_set():
                raise ChildKilled
            return
        check_message(message)
        lease.step()
        yield message


def _keep_work(services: Services, lease: Lease, message: JsonObject) -> None:
    """Keep what a message says that the child has finished.

    Raises:
        StorageAway: The report's files are not where control looks for them. Anything before it may be done again.
    """
    if message["type"] in ("progress", "error"):
        return
    try:
        services.storage.keep_work(lease.job_id, lease.fence)
    except StorageAway:
        if message["type"] == "report":
            raise
        logger.warning("what is finished is not kept yet", job=lease.job_id)


def _read_messages(stream: IO[bytes], messages: Messages) -> None:
    """Put the child's messages into a queue, then None."""
    try:
        with stream:
            for message in read_messages(stream):
                messages.put(message)
    except ValueError:
        logger.warning("the child's last message is cut, too long or not JSON")
    finally:
        messages.put(None)


class ProgressWrites:
    """Which reports of progress are written: few a second and few a job, because many workers share a database."""

    def __init__(self) -> None:
        self._written_at, self._progress = float("-inf"), 0.0

    def is_due(self, progress: float, now: float) -> bool:
        """Whether a job's progress, 0 to 1, is to be written at this second; if so, it counts as written."""
        if now - self._written_at < PROGRESS_INTERVAL or progress - self._progress < PROGRESS_STEP:
            return False
        self._written_at, self._progress = now, progress
        return True


class _MessageStore:
    """Stores the child's messages in the database, and opens a span for each stage."""

    def __init__(self, services: Services, lease: Lease, inputs: JobInput) -> None:
        self._services, self._lease = services, lease
        self._releases = [Path(path).parent for path in (inputs.first, inputs.parent, inputs.base) if path]
        self._progress_writes, self._span, self._reported = ProgressWrites(), contextlib.ExitStack(), False
        with services.db.reading() as session:
            job = jobs.by_id(session, lease.job_id)
        self._traceparent = job.traceparent if job else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self._reported:  # handed back, killed, or ended with an error message
            trace.get_current_span().set_status(trace.StatusCode.ERROR)
        self._span.__exit__(kind, error, traceback)

    def store(self, message: JsonObject) -> bool:
        """Store a message; true if it was the last."""
        services, job_id, fence = self._services, self._lease.job_id, self._lease.fence
        match message:
            case {"type": "progress", "phase": phase, "fraction": fraction}:
                if self._progress_writes.is_due(job_progress(phase, fraction), time.monotonic()):
                    store_progress(services, job_id, fence, phase, fraction)
                    services.storage.mark_used(self._releases)
            case {"type": "stage", "stage": stage}:
                store_stage(services, job_id, fence, Stage(stage))
                self._span.close()
                self._span.enter_context(span(stage, self._traceparent, job=str(job_id), fence=fence))
            case {"type": "thresholds", "baseline": baseline}:
                store_thresholds(services, job_id, fence, read_report(BaselineSummary, baseline))
            case {"type": "epoch", "values": values}:
                store_epoch(services, job_id, fence, values)
            case {"type": "rejected", "reasons": reasons}:
                rejected = {int(index): reason for index, reason in reasons.items()}
                store_rejected(services, job_id, fence, rejected)
            case {"type": "put_off", "requests": [_, *_] as put_off}:
                store_put_off(services, job_id, fence, put_off)
                self._reported = True
                return True
            case {"type": "report", "report": report}:
                store_report(services, job_id, fence, read_report(ChildReport, report))
                self._reported = True
                return True
            case {"type": "error", "code": code, "permanent": permanent}:
                fail_attempt(services, self._lease, code, permanent=permanent)
                return True
        return False
