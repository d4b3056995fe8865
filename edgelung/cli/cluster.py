"""The option `--ray` of `edgelung infer` and `edgelung slide`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from edgelung.inference.engines import OpenEngines


@contextmanager
def on_cluster(address: str | None, *, allow_unsigned: bool) -> "Iterator[OpenEngines | None]":
    """Join the cluster. Yields what opens the engines there; None without an address."""
    if address is None:
        yield None
        return
    from edgelung.cluster.ray_pool import ray_cluster

    with ray_cluster(address, allow_unsigned=allow_unsigned) as engines:
        yield engines


def check_ray(address: str | None, others: Mapping[str, object]) -> None:
    """Raise a usage error if `--ray` stands with an option that it excludes.

    `others`: the name of each such option, and its value.
    """
    # Not by truth: `--device 0` was given too.
    named = [name for name, value in others.items() if value is not None and value is not False]
    if address is not None and named:
        raise typer.BadParameter(
            f"--ray and {named[0]} exclude each other: the cluster shares out files and GPUs itself"
        )
