"""The summary of a run: its audit record."""

import json
import math
import platform
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.bundle import MANIFEST, Bundle
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, ExitCode
from edgelung.core.files import sha256_bytes, sha256_file
from edgelung.core.system import available_cores, version
from edgelung.engines.choose import Chosen
from edgelung.evaluation.gate import LIMITS
from edgelung.evaluation.metrics import labelled_metrics
from edgelung.inference.record import HARMLESS, Record

KIND = "edgelung infer"  # in the file, so that only a summary is ever written over
PACKAGES = ("numpy", "pillow", "simplejpeg", "openvino", "onnxruntime-gpu", "onnxruntime")


@dataclass
class Tally:
    """What is counted of the rows; a few numbers a class, nothing per file."""

    classes: Sequence[str]
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    agreed: int = 0
    largest_difference: float = 0.0

    def __post_init__(self) -> None:
        shape = (len(self.classes), len(self.classes))
        self.confusion = np.zeros(shape, np.int64)
        # Of the tiles that both saw, decided or not:
        self.compared_confusion = np.zeros(shape, np.int64)
        self.reference_confusion = np.zeros(shape, np.int64)

    def add(self, record: Record) -> None:
        """Count one row; the labelled figures are of what was decided."""
        self.statuses[record.status] += 1
        label, truth = record.decided, record.truth
        if label is not None:
            self.labels[self.classes[label]] += 1
            if truth is not None:
                self.confusion[truth, label] += 1
        if record.reference is not None and record.probabilities is not None:
            reference = record.reference.index(max(record.reference))
            self.compared += 1
            self.agreed += reference == record.best
            pairs = zip(record.reference, record.probabilities, strict=True)
            difference = max(abs(a - b) for a, b in pairs)
            self.largest_difference = max(self.largest_difference, difference)
            if truth is not None and record.best is not None:
                self.compared_confusion[truth, record.best] += 1
                self.reference_confusion[truth, reference] += 1


class Percentiles:
    """Percentiles of a stream of durations, to within 1 %, in a few hundred numbers."""

    STEP = math.log(1.02)

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._bins[round(math.log(max(seconds, 1e-7)) / self.STEP)] += 1

    def milliseconds(self) -> dict[str, float] | None:
        """p50, p90 and p99; None where nothing was counted."""
        total = self._bins.total()
        if not total:
            return None
        wanted = {"p50": 0.5 * total, "p90": 0.9 * total, "p99": 0.99 * total}
        found: dict[str, float] = {}
        seen = 0
        for place, count in sorted(self._bins.items()):
            seen += count
            for name, rank in wanted.items():
                if seen >= rank and name not in found:
                    found[name] = float(f"{1000 * math.exp(place * self.STEP):.3g}")
        return found


class NoTilesError(EdgelungError):
    """The FOLDER holds nothing to predict."""


def check_tiles(tally: Tally) -> None:
    """A run that met no tile at all is a mistake in its FOLDER."""
    if not tally.statuses:
        raise NoTilesError("found no file at all; expected a folder with tiles in it")
    if set(tally.statuses) == {"skipped"}:
        raise NoTilesError(
            f"found {tally.statuses.total()} files and no image among them; expected tiles"
        )


def summarize(bundle: Bundle, chosen: Chosen, tally: Tally) -> dict[str, Any]:
    """What came out, and the exit code that it means."""
    total = tally.statuses.total()
    failed = sum(n for status, n in tally.statuses.items() if status not in HARMLESS)
    code = ExitCode.SOME_FAILED if failed else ExitCode.OK
    labelled = verified = None
    if tally.confusion.sum():
        labelled = typed_json.plain(labelled_metrics(tally.confusion, bundle.classes))
    if tally.compared:
        share = tally.agreed / tally.compared
        passed = share >= LIMITS.min_agreement
        verified = {
            "tiles": tally.compared,
            "agreement": share,
            "differing_labels": tally.compared - tally.agreed,
            "max_probability_difference": tally.largest_difference,
            "min_agreement": LIMITS.min_agreement,
            "passed": passed,
            **{
                name: typed_json.plain(labelled_metrics(matrix, bundle.classes))
                if matrix.sum()
                else None
                for name, matrix in (
                    ("variant", tally.compared_confusion),
                    ("reference", tally.reference_confusion),
                )
            },
        }
        if not passed:
            code = ExitCode.GATE
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle_hash(bundle),
        "engine": chosen.engine.name,
        "device": chosen.engine.device,
        "precision": chosen.variant.precision,
        "floating_point": chosen.engine.float_type,
        "choice": chosen.reason,
        "golden_difference": chosen.golden_difference,
        "files": total,
        "failed": failed,
        "statuses": dict(tally.statuses),
        "labels": {name: tally.labels[name] for name in bundle.classes},
        "labelled": labelled,
        "verify": verified,
        "exit_code": int(code),
    }


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 of bundle.json, which holds the hash of every other file."""
    return sha256_file(bundle.folder / MANIFEST)


def host() -> dict[str, Any]:
    """The machine and the versions that a row may depend on."""
    return {
        "edgelung": __version__,
        "python": platform.python_version(),
        "packages": packages(),
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": available_cores(),
    }


def packages() -> dict[str, str]:
    """Name → version of what is installed of PACKAGES."""
    return {name: found for name in PACKAGES if (found := version(name))}


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":")[1].strip() for line in file if "model name" in line), "")
    except OSError:
        return platform.processor()


def record_head(started: str, sessions: Sequence[str], ended: str) -> dict[str, Any]:
    """How the summary begins."""
    return {
        "kind": KIND,
        "note": RESEARCH_USE_ONLY,
        "started": started,
        "resumed": list(sessions[1:]),
        "ended": ended,
    }


def summary_path(out: Path, asked: Path | None) -> Path | None:
    """Where the summary goes: where it was asked for, or beside the output."""
    path = asked
    if path is None:
        if out == Path("-"):
            return None
        path = out.with_suffix(".summary.json")
    if path.resolve() == out.resolve():
        raise EdgelungError(f"the rows and their summary cannot both be {out}; see --summary")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise EdgelungError(f"cannot write the summary {path}; expected a file in a folder")
    if path.exists() and path.stat().st_size:
        before = _summary_in(path)
        if before.get("kind") != KIND:
            raise EdgelungError(
                f"{path} exists and is no summary of a run; it was left alone: name another "
                "place with --summary"
            )
        if asked is None and Path(str(before.get("out"))).name != out.name:
            raise EdgelungError(
                f"{path} is the summary of {before.get('out')}; it was left alone: name another "
                "place with --summary"
            )
    return path


def _summary_in(path: Path) -> dict[str, Any]:
    """The JSON object in the file; an empty one where there is none."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(1 << 26))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def options_hash(options: Mapping[str, Any]) -> str:
    """SHA-256 of the options as sorted JSON."""
    return sha256_bytes(json.dumps(options, sort_keys=True).encode())
