"""Program logs in logfmt (structlog): one line an event, with the fields of a list and no others.

An exception's message may quote what a caller sent, and so may a field outside the list. Neither is written: of an
exception a line has the type and the frames.
"""

import logging
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

import structlog
from opentelemetry import trace
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

FIELDS = (
    *("timestamp", "level", "logger", "event"),
    *("job", "request", "corpus", "model", "version", "step", "id", "fence", "file"),
    *("method", "route", "http_status", "ms", "key"),
    *("error", "trace", "at"),
)
MAX_FRAMES = 12


def get_logger(name: str) -> BoundLogger:
    """A logger whose calls name an event and its fields: `logger.info("claimed", job=job_id)`."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(level: str) -> None:
    """Let this process log to standard error. Lines from the standard `logging` module get the same form."""
    logging.raiseExceptions = False  # if the disk is full a line is lost; its traceback would quote the record
    handler = logging.StreamHandler()
    processors: list[Processor] = [_add_frames, ProcessorFormatter.remove_processors_meta, _drop_unlisted, RENDERER]
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=PROCESSORS, processors=processors))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("celery.app.trace").addFilter(_without_message)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # at INFO they log whole URLs; a callback's URL is secret


def is_logged(level: str) -> bool:
    """Whether this process logs lines of a level."""
    return logging.getLogger().isEnabledFor(logging.getLevelNamesMapping()[level])


def write_lines(lines: str) -> None:
    """Write lines that are made already. If the disk is full they are lost."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            with handler.lock or nullcontext(), suppress(OSError):
                handler.stream.write(lines)
                handler.flush()


def _without_message(record: logging.LogRecord) -> bool:
    """Rewrite Celery's line about a failed task, which quotes the exception; keep the task's name and id."""
    data = record.args if isinstance(record.args, dict) else {}
    if data.get("exc") is not None:
        record.msg, record.args = "Task %s[%s] raised", (data.get("name"), data.get("id"))
    return True


def _add_frames(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and its frames."""
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
        event["error"] = type(error).__name__
        event["at"] = " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return event


def trace_id() -> str | None:
    """The id of the current trace, if there is one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the id of the current trace, if there is one."""
    if identifier := trace_id():
        event["trace"] = identifier
    return event


def _drop_unlisted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Drop every field that is not on the list."""
    return {name: event[name] for name in FIELDS if event.get(name) is not None}


PROCESSORS: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _add_trace,
]
RENDERER = structlog.processors.LogfmtRenderer(key_order=FIELDS, drop_missing=True)
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *PROCESSORS, _add_frames, ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=BoundLogger,
)
