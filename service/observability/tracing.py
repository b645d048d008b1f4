"""Traces (OpenTelemetry) from a request's POST through the queue to its version's publication and its callback.

The rows of requests and jobs carry the trace context, because a queue message may be lost. A job belongs to the trace
of its most urgent request and is linked to the traces of its other requests. A span has step names, ids and error
types, and nothing else. Without OTEL_EXPORTER_OTLP_ENDPOINT, or without the extra `otel`, nothing is recorded.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.logging import get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import ReadableSpan

logger = get_logger(__name__)
ATTRIBUTES = ("unlearnd.", "http.method", "http.request.method", "http.route", "http.status_code", "http.response.")
PROPAGATOR = TraceContextTextMapPropagator()
TRACER = trace.get_tracer("unlearnd")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure(part: str) -> bool:
    """Export this process's spans as `unlearnd-PART` if the environment names an endpoint; return whether it does."""
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

    class ListedAttributesExporter(SpanExporter):
        """Exports listed attributes only: instrumentation also records URLs, peers and messages of exceptions."""

        def __init__(self) -> None:
            self._exporter = OTLPSpanExporter()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return self._exporter.export([_without_unlisted(span, ReadableSpan) for span in spans])

        def shutdown(self) -> None:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    resource = Resource.create({"service.name": f"unlearnd-{part}", "service.namespace": "unlearnd"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(ListedAttributesExporter()))
    trace.set_tracer_provider(provider)
    return True


def instrument(app: "FastAPI") -> None:
    """Make each HTTP request of an application a span that continues the caller's trace."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    excluded = "/livez$,/readyz$,/metrics$"
    FastAPIInstrumentor.instrument_app(app, excluded_urls=excluded, exclude_spans=["send", "receive"])


def _without_unlisted(span: "ReadableSpan", span_class: "type[ReadableSpan]") -> "ReadableSpan":
    """A copy of a span with the listed attributes only: no others, no events, no status message."""
    return span_class(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={name: value for name, value in (span.attributes or {}).items() if name.startswith(ATTRIBUTES)},
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def traceparent() -> str | None:
    """The current span, to be stored with a row (W3C Trace Context, `traceparent`); None if nothing is recorded."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def _stored_context(parent: str | None) -> Context:
    """The context that a stored `traceparent` names; an empty one without it."""
    return PROPAGATOR.extract({"traceparent": parent} if parent else {}, Context())


@contextmanager
def span(name: str, parent: str | None, also: Iterable[str | None] = (), **attributes: str | int) -> Iterator[Span]:
    """A span below a stored one, linked to others. An exception adds its type, not its message, which may quote."""
    links = [Link(trace.get_current_span(_stored_context(other)).get_span_context()) for other in also if other]
    unlearnd_attributes = {f"unlearnd.{key}": value for key, value in attributes.items()}
    with TRACER.start_as_current_span(
        name,
        _stored_context(parent),
        attributes=unlearnd_attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(StatusCode.ERROR)
            current.set_attribute("unlearnd.error", type(error).__name__)
            raise
