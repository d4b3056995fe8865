"""The option `--metrics-port` of `edgelung infer --watch`."""

from typing import TYPE_CHECKING

from edgelung.cli.command import report

if TYPE_CHECKING:
    from edgelung.inference.watch import OnRecords


def offer_metrics(port: int | None) -> "OnRecords":
    """Offer metrics on a port, if one is named; returns what counts rows."""
    if port is None:
        return lambda records: None
    from edgelung.serving.metrics import LOOPBACK, RowMetrics, serve_metrics

    metrics = RowMetrics()
    report("metrics are at http://%s:%d/metrics", LOOPBACK, serve_metrics(metrics, port))
    return metrics.rows
