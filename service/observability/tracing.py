"""Traces from a request's POST to its version's publication and its callback, through the queue (OpenTelemetry).

What carries them is the rows of requests and jobs, as everything here: a message may be lost. A job belongs to the
trace of its most urgent request and is linked to the others'. Spans name steps, ids and error types, nothing else.
Without OTEL_EXPORTER_OTLP_ENDPOINT, or without the extra `otel`, nothing is recorded.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.logging import get_logger

logger = get_logger(__name__)
ATTRIBUTES = ("unlearnd.", "http.method", "http.request.method", "http.route", "http.status_code", "http.response.")
PROPAGATOR = TraceContextTextMapPropagator()
TRACER = trace.get_tracer("unlearnd")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure(part: str) -> bool:
    """Export this process' spans as `unlearnd-PART` if the environment says where to; returns whether it does."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    except ImportError:
        logger.warning("traces are asked for, and need the extra `otel`")
        return False

    class Listed(SpanExporter):
        """Passes on what is on the list: instrumentation records URLs, peers and messages of exceptions, too."""

        def __init__(self) -> None:
            self._to = OTLPSpanExporter()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return self._to.export([_listed(span, ReadableSpan) for span in spans])

        def shutdown(self) -> None:
            self._to.shutdown()  # type: ignore[no-untyped-call]

    resource = Resource.create({"service.name": f"unlearnd-{part}", "service.namespace": "unlearnd"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(Listed()))
    trace.set_tracer_provider(provider)
    return True


def instrument(app: Any) -> None:
    """Let each request of an application be a span, which goes on from the caller's."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    unseen = "/livez$,/readyz$,/metrics$"
    FastAPIInstrumentor.instrument_app(app, excluded_urls=unseen, exclude_spans=["send", "receive"])


def _listed(span: Any, kind: Any) -> Any:
    attributes = {name: value for name, value in span.attributes.items() if name.startswith(ATTRIBUTES)}
    return kind(
        name=span.name, context=span.context, parent=span.parent, resource=span.resource, attributes=attributes,
        links=span.links, kind=span.kind, status=Status(span.status.status_code), start_time=span.start_time,
        end_time=span.end_time, instrumentation_scope=span.instrumentation_scope,
    )  # fmt: skip


def traceparent() -> str | None:
    """The current span, to be kept with a row (W3C Trace Context, `traceparent`); None if nothing is recorded."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def _context(parent: str | None) -> Context:
    return PROPAGATOR.extract({"traceparent": parent} if parent else {}, Context())


@contextmanager
def span(name: str, parent: str | None, also: Iterable[str | None] = (), **attributes: str | int) -> Iterator[Span]:
    """A span under a kept one, linked to others; an exception marks it with its type, as messages may quote."""
    links = [Link(trace.get_current_span(_context(other)).get_span_context()) for other in also if other]
    named = {f"unlearnd.{key}": value for key, value in attributes.items()}
    with TRACER.start_as_current_span(
        name, _context(parent), attributes=named, links=links, record_exception=False, set_status_on_exception=False
    ) as found:
        try:
            yield found
        except Exception as error:
            found.set_status(StatusCode.ERROR)
            found.set_attribute("unlearnd.error", type(error).__name__)
            raise
