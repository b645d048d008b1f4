"""Logs in logfmt: one line an event, with the fields on a list and no others, and of an exception its frames alone.

A message of an exception may quote what was sent, and a field may hold it; so neither is written (structlog).
"""

import logging
import sys
import traceback
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict

FIELDS = (
    "timestamp", "level", "logger", "event", "job", "request", "corpus", "model", "version", "step", "id", "fence",
    "http_status", "error", "trace", "at",
)  # fmt: skip
FRAMES = 12


def get_logger(name: str) -> BoundLogger:
    """A logger whose calls name an event and its fields: `logger.info("claimed", job=job_id)`."""
    found: BoundLogger = structlog.stdlib.get_logger(name)
    return found


def configure(level: str) -> None:
    """Let this process log to standard error; whatever logs by `logging` comes out in the same form."""
    handler = logging.StreamHandler()
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=COMMON, processors=[*LAST, RENDER]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("celery.app.trace").addFilter(_without_message)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # at INFO they log whole URLs, and a callback's is sealed


def _without_message(record: logging.LogRecord) -> bool:
    """Celery writes an exception's message and traceback into its own; what is left says which task it was."""
    data = record.args if isinstance(record.args, dict) else {}
    if data.get("exc") is not None:
        record.msg, record.args = "Task %s[%s] raised", (data.get("name"), data.get("id"))
    return True


def _frames(_: Any, __: str, event: EventDict) -> EventDict:
    """An exception as its type and where it came from."""
    given = event.pop("exc_info", None)
    info = sys.exc_info() if given is True else given
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        found = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        event["error"] = type(error).__name__
        event["at"] = " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in found)
    return event


def _trace(_: Any, __: str, event: EventDict) -> EventDict:
    """The trace that an event belongs to, if any."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace"] = trace.format_trace_id(context.trace_id)
    return event


def _listed(_: Any, __: str, event: EventDict) -> EventDict:
    """Without what is not on the list."""
    return {name: event[name] for name in FIELDS if event.get(name) is not None}


COMMON: list[Any] = [
    structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True), _trace,
]  # fmt: skip
LAST: list[Any] = [_frames, ProcessorFormatter.remove_processors_meta, _listed]
RENDER = structlog.processors.LogfmtRenderer(key_order=FIELDS, drop_missing=True)
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *COMMON, _frames, ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=BoundLogger,
)  # fmt: skip
