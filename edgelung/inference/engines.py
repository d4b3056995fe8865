"""The engines of a run, and how they predict.

`open_engines` loads them on this machine; `edgelung.cluster` has them on others.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.summary import NodeRecord
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.engines.base import Engine
from edgelung.engines.choose import Choice, Chosen, open_engine
from edgelung.engines.names import EngineName
from edgelung.engines.visible_gpu import select_gpu
from edgelung.inference.identity import RunIdentity
from edgelung.inference.options import Options
from edgelung.inference.pipeline import Row, default_batch_size, predict_batches
from edgelung.inference.reading import Reading

Item = TypeVar("Item")


class Engines(Protocol):
    """The engines that predict a run: on this machine, or on others.

    Attributes:
        chosen: engine and variant, the same wherever it runs.
        batch_size: tiles per batch.
        threads: CPU threads, of all machines together.
        nodes: the other machines that predicted in the last call of `predict`; none if it was this
            one.
    """

    @property
    def chosen(self) -> Choice: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def nodes(self) -> Sequence[NodeRecord]: ...

    def predict(
        self, items: Iterable[Item], reading: Reading[Item], *, first: int
    ) -> Generator[list[Row[Item]], None, None]:
        """Predict items in batches, in their order. `first`: the number of the first batch."""
        ...


# Opens the engines of a run, given what a stopped run was that it continues.
OpenEngines = Callable[[Bundle, Options, RunIdentity | None], AbstractContextManager[Engines]]


@dataclass(frozen=True)
class LoadedEngines:
    """The engine that predicts, the one that verifies it, and how they are used. See `Engines`.

    `verify_every`: the reference predicts every so many batches.
    """

    chosen: Chosen
    reference: Engine | None
    batch_size: int
    threads: int
    nodes: Sequence[NodeRecord] = ()
    verify_every: int = 1

    def predict(
        self, items: Iterable[Item], reading: Reading[Item], *, first: int
    ) -> Generator[list[Row[Item]], None, None]:
        """See `Engines`."""
        return predict_batches(
            items,
            reading,
            self.chosen.engine,
            batch_size=self.batch_size,
            threads=self.threads,
            reference=self.reference,
            reference_every=self.verify_every,
            first=first,
        )


@contextmanager
def open_engines(
    bundle: Bundle, options: Options, previous: RunIdentity | None
) -> Iterator[LoadedEngines]:
    """Load the engines. What the options leave open is as in the run that is resumed."""
    if options.gpu is not None:
        select_gpu(options.gpu)
    asked_precision = options.precision
    options = as_before(options, previous)
    threads = options.threads or available_cores()
    with ExitStack() as stack:

        def load(variant: Precision | None, engine: EngineName | None) -> Chosen:
            chosen = open_engine(
                bundle,
                engine,
                variant,
                threads,
                options.prebuilt,
                latency=options.batch_size == 1,
            )
            stack.callback(chosen.engine.close)
            return chosen

        chosen = load(options.precision, options.engine)
        if options.gpu is not None and chosen.engine.device == "CPU":
            raise EdgelungError(
                f"--device {options.gpu}: no GPU engine works here, only {chosen.engine.name} on "
                "the CPU; see `edgelung doctor`, or leave --device out"
            )
        if previous is not None and asked_precision is None:  # `open_engine` says it was asked for
            chosen = replace(chosen, reason=reason_to_resume(chosen))
        # On a CPU the engine that predicts gives the reference too, also when the run is resumed.
        on_cpu = chosen.engine.device == "CPU"
        engine = EngineName(chosen.engine.name) if on_cpu else options.engine
        yield LoadedEngines(
            chosen,
            load(FULL_PRECISION, engine).engine if options.verify else None,
            options.batch_size or default_batch_size(chosen.engine),
            threads,
            verify_every=options.verify_every,
        )


def as_before(options: Options, previous: RunIdentity | None) -> Options:
    """The options; what they leave open is as in the run that is resumed."""
    if previous is None:
        return options
    return replace(
        options,
        engine=options.engine or previous.engine,
        precision=options.precision or previous.precision,
        batch_size=options.batch_size or previous.batch_size,
    )


def reason_to_resume(chosen: Choice) -> str:
    """Why a resumed run predicts with what it began with."""
    reason = f"as the run began: {chosen.variant.precision} on {chosen.engine.name}"
    if chosen.variant.passed:
        return reason
    return f"{reason}; its gate: {chosen.variant.gate.verdict}"
