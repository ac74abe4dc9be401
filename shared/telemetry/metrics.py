"""Metrics through OpenTelemetry, exported over OTLP when ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set.

The instruments are private; the functions are what the code calls.
"""

from opentelemetry import metrics

from shared.settings import Settings

_EXPORT_EVERY = 15_000  # milliseconds

_meter = metrics.get_meter("waybill")
_redis_unavailable = _meter.create_counter("waybill.redis.unavailable", description="commands that found no Redis")
_steps = _meter.create_counter("waybill.steps", description="steps by task and how they ended")
_unaccounted = _meter.create_counter("waybill.charges.unaccounted", description="charges we have no payment for")
_swept = _meter.create_counter("waybill.orders.swept", description="orders that fell silent and were driven on")


def configure_metrics(settings: Settings, process: str) -> None:
    """Start exporting from this process; does nothing without an endpoint."""
    if not settings.otlp_endpoint:
        return
    # imported here: the exporter is slow to load and most processes run without
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    exporter = OTLPMetricExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=_EXPORT_EVERY)
    resource = Resource.create({"service.name": f"waybill-{process}"})
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], resource=resource))


def record_redis_unavailable() -> None:
    """Count a command that found no Redis."""
    _redis_unavailable.add(1)


def record_step(task: str, ending: str) -> None:
    """Count a step: ``done``, ``declined``, ``retrying``, ``waiting``, ``parked`` or ``handed_back``."""
    _steps.add(1, {"task": task, "ending": ending})


def record_unaccounted_charge() -> None:
    """Count a charge that the provider has and we do not."""
    _unaccounted.add(1)


def record_swept(count: int) -> None:
    """Count orders that the sweeper drove on."""
    _swept.add(count)
