"""Metrics in the text format of Prometheus, of the service and of `infer --watch`.

Names, labels and buckets are fixed here. No label holds what a client sends, so that no client can
make the number of series grow.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.extras import load_extra
from edgelung.engines.choose import Chosen
from edgelung.inference.record import Record
from edgelung.tiles.status import Status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TILES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
SCORE = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10)  # about 1 for tiles like the training tiles
LOOPBACK = "127.0.0.1"


class RowMetrics:
    """Rows by status, with histograms of confidence and OOD score."""

    def __init__(self) -> None:
        client = load_extra("prometheus_client", "metrics", "serve")
        client.disable_created_metrics()  # they double the number of series
        self.registry: CollectorRegistry = client.CollectorRegistry()
        client.ProcessCollector(registry=self.registry)
        self._rows = client.Counter(
            "edgelung_rows", "Rows by status.", ["status"], registry=self.registry
        )
        for status in Status:  # a series that begins at 0 has a rate from the first row on
            self._rows.labels(status)
        self._confidence = client.Histogram(
            "edgelung_confidence",
            "Largest probability of each predicted tile.",
            buckets=CONFIDENCE,
            registry=self.registry,
        )
        self._score = client.Histogram(
            "edgelung_ood_score",
            "How far each predicted tile is from the training tiles.",
            buckets=SCORE,
            registry=self.registry,
        )

    def rows(self, records: Sequence[Record]) -> None:
        """Count rows."""
        for record in records:
            self._rows.labels(record.status).inc()
            if record.probabilities is not None:
                self._confidence.observe(max(record.probabilities))
            if record.ood is not None:
                self._score.observe(record.ood)

    def text(self) -> bytes:
        """All metrics."""
        text: bytes = load_extra("prometheus_client", "metrics", "serve").generate_latest(
            self.registry
        )
        return text


class ServiceMetrics(RowMetrics):
    """Adds requests, latency, batches and the queue of the service."""

    def __init__(self) -> None:
        super().__init__()
        client = load_extra("prometheus_client", "metrics", "serve")
        self._model = client.Info("edgelung_model", "What predicts.", registry=self.registry)
        self._requests = client.Counter(
            "edgelung_requests",
            "Answered requests by route and HTTP status.",
            ["route", "code"],
            registry=self.registry,
        )
        self._seconds = client.Histogram(
            "edgelung_request_seconds",
            "Seconds from the request's header to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._closed = client.Counter(
            "edgelung_connections_closed",
            "Connections that the service closed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._batch = client.Histogram(
            "edgelung_batch_tiles", "Tiles per batch.", buckets=TILES, registry=self.registry
        )
        self._waiting = client.Gauge(
            "edgelung_waiting_tiles", "Tiles that wait for an engine.", registry=self.registry
        )
        self._in_flight = client.Gauge(
            "edgelung_in_flight_tiles", "Tiles that wait or run.", registry=self.registry
        )

    def describe(self, bundle: Bundle, chosen: Chosen) -> None:
        """Say which model runs."""
        self._model.info(
            {
                "edgelung": __version__,
                "bundle_sha256": bundle.sha256,
                "precision": str(chosen.variant.precision),
                "engine": chosen.engine.name,
            }
        )

    def watch_queue(self, waiting: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Ask these for the queue's length whenever the metrics are read."""
        self._waiting.set_function(waiting)
        self._in_flight.set_function(in_flight)

    def request(self, route: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def connection_closed(self, reason: str) -> None:
        """Count a connection that the service closed for a fixed reason."""
        self._closed.labels(reason).inc()

    def batch(self, tiles: int) -> None:
        """Count a batch."""
        self._batch.observe(tiles)


def serve_metrics(metrics: RowMetrics, port: int) -> int:
    """Offer the metrics on a port of this machine, until the process ends; returns the port.

    Raises EdgelungError if the port cannot be used.
    """
    client = load_extra("prometheus_client", "metrics", "serve")
    try:
        server, _ = client.start_http_server(port, addr=LOOPBACK, registry=metrics.registry)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise EdgelungError(
            f"the metrics cannot be offered on {LOOPBACK}:{port}: {reason}; name another port"
        ) from error
    bound: int = server.server_port
    return bound
