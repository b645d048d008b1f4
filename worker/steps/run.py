"""Running the compute child: a pipe in, JSON lines out, and every line written down under the fence.

The child gets the texts through its standard input and has no database and no key. Its input pipe stays open as
long as this process lives: the child ends when it closes, so a killed worker leaves no child behind.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import IO, Any, Self

from opentelemetry import trace

from service.bootstrap import Services
from service.db import jobs
from service.domain.errors import LostLease
from service.domain.json_types import JsonObject
from service.domain.report import BaselineSummary, ChildReport
from service.domain.states import Stage
from service.lease import Lease, fail_attempt, hand_back
from service.observability.logging import get_logger
from service.observability.tracing import span
from service.schemas.report import read_report
from service.steps.path.unlearn import (
    compute_input,
    store_epoch,
    store_progress,
    store_rejected,
    store_stage,
    store_thresholds,
)
from service.steps.path.verify import store_report
from worker.app import stopping

logger = get_logger(__name__)
PROGRESS_INTERVAL = 0.5  # seconds between progress writes
WATCH_INTERVAL = 0.2  # seconds until a lost lease or a stop is noticed


def run_job(services: Services, lease: Lease) -> None:
    """Run a claimed job's compute stages to their report, or give the job back."""
    inputs = compute_input(services, lease.job_id, lease.fence)
    child = _start()
    try:
        # A thread of its own: a child that hangs before it reads must not make us hang, too, on a full pipe.
        threading.Thread(target=_feed, args=(child, json.dumps(asdict(inputs)).encode() + b"\n"), daemon=True).start()
        _follow(services, lease, child)
    finally:
        child.kill()
        child.wait()


def _feed(child: "subprocess.Popen[bytes]", inputs: bytes) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died, which is told elsewhere
        child.stdin.write(inputs)
        child.stdin.flush()


def _start() -> "subprocess.Popen[bytes]":
    kept = ("UNLEARND_FAILPOINTS",)  # no database, no keys
    environment = {k: v for k, v in os.environ.items() if k in kept or not k.startswith("UNLEARND_")}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "worker.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def _follow(services: Services, lease: Lease, child: "subprocess.Popen[bytes]") -> None:
    """Write the child's messages down until it reports, dies, or we must stop."""
    assert child.stdout is not None
    messages: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child.stdout, messages), daemon=True).start()
    with _Writer(services, lease) as writer:
        while True:
            if stopping.is_set():
                hand_back(services, lease)
                return
            if lease.lost.is_set():
                raise LostLease(f"job {lease.job_id}")
            try:
                message = messages.get(timeout=WATCH_INTERVAL)
            except queue.Empty:
                continue
            if message is None:
                code = child.wait()
                fail_attempt(services, lease, "child_killed" if code < 0 else "child_died", permanent=False)
                return
            lease.steps += 1
            if writer.handle(message):
                return


def _read(stream: IO[bytes], messages: "queue.SimpleQueue[JsonObject | None]") -> None:
    """The child's lines, then None."""
    try:
        for line in stream:
            messages.put(json.loads(line))
    except ValueError:
        logger.warning("the child's last message is cut")
    finally:
        messages.put(None)


class _Writer:
    """Turns the child's messages into rows."""

    def __init__(self, services: Services, lease: Lease) -> None:
        self._services, self._lease = services, lease
        self._progress_written, self._span, self._reported = 0.0, contextlib.ExitStack(), False
        with services.db.reading() as session:
            job = jobs.by_id(session, lease.job_id)
        self._traceparent = job.traceparent if job else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: Any) -> None:
        if error is None and not self._reported:  # handed back, killed, or failed as its last message said
            self._failed()
        self._span.__exit__(kind, error, frames)

    def _failed(self) -> None:
        trace.get_current_span().set_status(trace.StatusCode.ERROR)

    def handle(self, message: JsonObject) -> bool:
        """Write one message down; true if it was the last."""
        services, job_id, fence = self._services, self._lease.job_id, self._lease.fence
        match message:
            case {"type": "progress", "phase": phase, "fraction": fraction}:
                if time.monotonic() - self._progress_written >= PROGRESS_INTERVAL:
                    store_progress(services, job_id, fence, phase, fraction)
                    self._progress_written = time.monotonic()
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
            case {"type": "report", "report": report}:
                store_report(services, job_id, fence, read_report(ChildReport, report))
                self._reported = True
                return True
            case {"type": "error", "code": code, "permanent": permanent}:
                fail_attempt(services, self._lease, code, permanent=permanent)
                return True
        return False
