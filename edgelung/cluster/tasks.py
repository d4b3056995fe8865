"""What goes to a worker and what comes back. All of it can be pickled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edgelung.core.precision import Precision
from edgelung.core.system import Host
from edgelung.engines.names import EngineName

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setup:
    """How a worker opens the bundle; the options are those of `inference.options.Options`.

    Attributes:
        bundle: SHA-256 of bundle.json, which holds the hashes of all other files.
        threads: CPU threads of this worker.
        allow_unsigned: as on the command line; the keys are those that the node trusts.
    """

    bundle: str
    engine: EngineName | None
    precision: Precision | None
    batch_size: int | None
    threads: int
    verify: bool
    verify_every: int
    allow_unsigned: bool


@dataclass(frozen=True)
class Report:
    """What a worker has opened.

    Attributes:
        slots: how many tasks keep it busy at once.
        batches: how many batches a task should have.
    """

    host: Host
    engine: EngineName
    device: str
    float_type: str
    precision: Precision
    reason: str
    golden_difference: float
    batch_size: int
    threads: int
    slots: int
    batches: int


@dataclass(frozen=True)
class Task(Generic[Item]):
    """Some batches of a run, one after the other.

    Attributes:
        number: of the task, in the order of the run.
        first: the number of its first batch.
        items: what is predicted; all batches but the last of a run are full.
        without: positions of items that are not read; each has a row with this reason.
    """

    number: int
    first: int
    items: Sequence[Item]
    without: Mapping[int, str] = field(default_factory=dict)
