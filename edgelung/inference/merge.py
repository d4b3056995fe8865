"""`edgelung merge`: the rows of all parts of a run become the rows of the whole run.

Every part recorded what it was (its options) and which files it had seen. Only parts of one run
that together hold each of these files once are merged.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from msgspec import structs

from edgelung.artifacts.predictions import MAX_ROWS_BYTES, Prediction, decode_predictions, format_of
from edgelung.artifacts.summary import (
    MAX_BYTES,
    Listing,
    Part,
    Summary,
    decode_summary,
    summary_beside,
    write_summary,
)
from edgelung.core.errors import EdgelungError, ExitCode
from edgelung.core.files import sha256_bytes
from edgelung.core.folder import Folder, read_regular
from edgelung.core.typed_json import Json
from edgelung.inference.destination import Destination, check_rows
from edgelung.inference.output import write_hashed
from edgelung.inference.shards import PathSum, Shard
from edgelung.inference.summary import options_hash
from edgelung.inference.tally import check_any_tile, verification
from edgelung.tiles.names import from_printable
from edgelung.tiles.status import NO_FAILURE

WRITE_ROWS = 1024
# Options that do not affect rows, or that other machines name otherwise: `Listing` covers them.
_OF_A_PART = ("--shard", "--threads", "inputs")


@dataclass(frozen=True)
class _PartOfRun:
    file: Path
    summary: Summary
    listing: Listing
    shard: Shard
    rows: Sequence[Prediction]

    @property
    def options(self) -> dict[str, Json]:
        """What has to be the same in all parts."""
        options = {k: v for k, v in self.summary.options.items() if k not in _OF_A_PART}
        folders = self.summary.options.get("inputs")
        names = [os.path.basename(str(one)) for one in folders] if isinstance(folders, list) else []
        return options | {
            "bundle": self.summary.bundle_sha256,
            "device": self.summary.device,
            "classes": list(self.summary.labels),
            "folder": names,
        }


def merge_parts(files: Sequence[Path], destination: Destination) -> Summary:
    """Merge the rows of all parts, sorted by path as an undivided run lists a folder.

    The rows of a run over a list (`--files`) are sorted too, and so not in the order of the list.

    Args:
        files: the rows of each part, with their summaries beside them; all of one format.
        destination: where rows and summary go; of the same format.

    Returns:
        The summary, which is also written.

    Raises:
        EdgelungError: a file cannot be read or was changed, the parts are not of one run, or one
            is missing. Nothing is written then.
    """
    if destination.rows is None:
        raise EdgelungError("--out -: expected a file; the merged rows need a summary beside them")
    if destination.rows.resolve() in {file.resolve() for file in files}:
        raise EdgelungError(f"--out {destination.name} is one of the parts; choose another name")
    parts = sorted((_read(file, destination) for file in files), key=lambda part: part.shard.number)
    _check_one_run(parts)
    _check_complete(parts)
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: _place(row.path))
    _check_rows(parts, rows)
    summary = _summary(parts, rows, destination)
    check_any_tile(summary.statuses, summary.links_skipped)
    classes = list(summary.labels)

    with Folder(destination.rows.parent) as folder:
        check_rows(folder, destination.rows.name, destination.format)
        digest = write_hashed(
            folder, destination.rows.name, lambda file: _write(destination, file, classes, rows)
        )
    summary = structs.replace(summary, out_sha256=digest)
    if destination.summary:
        write_summary(destination.summary, summary)
    return summary


def _read(file: Path, destination: Destination) -> _PartOfRun:
    """One part. The rows that are merged are those that were hashed, whoever replaces the file."""
    if format_of(file) is not destination.format:
        raise EdgelungError(
            f"{file} and --out {destination.name} are of two formats; expected one, since numbers "
            "are rounded in some"
        )
    beside = summary_beside(file)
    summary = decode_summary(beside, _content(beside, MAX_BYTES))
    data = _content(file, MAX_ROWS_BYTES)
    if os.path.basename(summary.out) != file.name:
        raise EdgelungError(f"{beside} is the summary of {summary.out}, not of {file.name}")
    if sha256_bytes(data) != summary.out_sha256:
        raise EdgelungError(
            f"{file} was changed after its run; expected the rows that `edgelung infer` wrote"
        )
    shard = summary.options.get("--shard")
    if not isinstance(shard, str) or summary.listing is None:
        raise EdgelungError(
            f"{file} is no part of a run; expected rows of `edgelung infer --shard K/N`"
        )
    if options_hash(summary.options) != summary.options_sha256:
        raise EdgelungError(f"{beside} was changed after its run: its options have another hash")
    found = decode_predictions(file, data)
    if found.rows and found.classes != tuple(summary.labels):
        raise EdgelungError(
            f"{file} has the classes {', '.join(found.classes)}, and its summary "
            f"{', '.join(summary.labels)}; one of them was changed after the run"
        )
    _check_names(file, found.rows)
    return _PartOfRun(file, summary, summary.listing, Shard.parse(shard), found.rows)


def _check_names(file: Path, rows: Sequence[Prediction]) -> None:
    """Raise EdgelungError for a path that no file can have."""
    try:
        for row in rows:
            row.path.encode()
    except UnicodeEncodeError as error:
        raise EdgelungError(f"{file} holds a path that is not valid UTF-8") from error


def _content(file: Path, most: int) -> bytes:
    try:
        return read_regular(file, most)
    except OSError as error:
        raise EdgelungError(
            f"cannot read {file}: {error.strerror}; expected the rows and the summary of a part"
        ) from error


def _check_one_run(parts: Sequence[_PartOfRun]) -> None:
    """Raise EdgelungError that names the first difference between the parts."""
    first = parts[0]
    for part in parts[1:]:
        for key in first.options | part.options:
            if (one := first.options.get(key)) != (other := part.options.get(key)):
                found = _difference(key, one, other)
                raise EdgelungError(
                    f"{first.file} and {part.file} are not of one run: {found}; predict one of "
                    "them again"
                )
        if part.shard.count != first.shard.count:
            raise EdgelungError(
                f"{first.file} and {part.file} are not of one run: --shard is {first.shard} and "
                f"{part.shard}"
            )
        if part.listing != first.listing:
            raise EdgelungError(
                f"{first.file} and {part.file} have not seen the same files: "
                f"{first.listing.files:,} and {part.listing.files:,}; run the parts again on a "
                "folder that does not change, with --out outside of it"
            )


def _difference(key: str, one: Json, other: Json) -> str:
    """What differs; of the versions of packages, the first that does."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one | other:
            if one.get(name) != other.get(name):
                return _difference(f"{key}: {name}", one.get(name), other.get(name))
    return f"{key} is {one} and {other}"


def _check_complete(parts: Sequence[_PartOfRun]) -> None:
    """Raise EdgelungError if a part is missing, or there twice."""
    numbers = Counter(part.shard.number for part in parts)
    count = parts[0].shard.count
    for number, times in numbers.items():
        if times > 1:
            twice = [str(part.file) for part in parts if part.shard.number == number]
            raise EdgelungError(f"part {number}/{count} is there twice: {', '.join(twice)}")
    if missing := [str(n) for n in range(1, count + 1) if n not in numbers]:
        names = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
        raise EdgelungError(f"{len(missing)} of {count} parts are missing: {names}")


def _check_rows(parts: Sequence[_PartOfRun], rows: Sequence[Prediction]) -> None:
    """Raise EdgelungError if the rows are not those of all files that the parts have seen."""
    found = PathSum()
    for row in rows:
        found.add(row.path)
    if found.listing != parts[0].listing:
        raise EdgelungError(
            f"the parts hold {found.listing.files:,} rows, and they have seen "
            f"{parts[0].listing.files:,} files, or others; run them again"
        )


def _place(path: str) -> tuple[bytes, ...]:
    """Sorts printable paths as `edgelung.tiles.find.find_files` lists them."""
    *folders, name = os.fsencode(from_printable(path)).split(b"/")
    return (*(folder + b"\0" for folder in folders), name)


def _write(
    destination: Destination, file: IO[bytes], classes: Sequence[str], rows: Sequence[Prediction]
) -> None:
    writer = destination.format.writer(file, classes)
    for begin in range(0, len(rows), WRITE_ROWS):
        writer.write(rows[begin : begin + WRITE_ROWS])
    writer.close()


def _summary(
    parts: Sequence[_PartOfRun], rows: Sequence[Prediction], destination: Destination
) -> Summary:
    """The summary of the whole run; without the hash of its rows. What rows show is counted."""
    all_of = [part.summary for part in parts]
    first = all_of[0]
    compared = [one.verify for one in all_of if one.verify]
    verify = verification(
        sum(one.tiles for one in compared),
        sum(one.differing_labels for one in compared),
        max((one.max_probability_difference for one in compared), default=0.0),
    )
    statuses = Counter(row.status for row in rows)
    labels = Counter(row.label for row in rows if row.label)
    failed = sum(n for status, n in statuses.items() if status not in NO_FAILURE)
    exit_code = ExitCode.SOME_FAILED if failed else ExitCode.OK
    options = {key: value for key, value in first.options.items() if key != "--shard"}
    return structs.replace(
        first,
        started=min(one.started for one in all_of),
        resumed=sorted(when for one in all_of for when in one.resumed),
        ended=max(one.ended for one in all_of),
        golden_difference=max(one.golden_difference for one in all_of),
        files=len(rows),
        failed=failed,
        statuses=dict(statuses),
        stages=_total([one.stages for one in all_of]),
        labels={name: labels[name] for name in first.labels},
        verify=verify,
        exit_code=int(ExitCode.GATE if verify and not verify.passed else exit_code),
        out=destination.name,
        out_sha256=None,
        options=options,
        options_sha256=options_hash(options),
        seconds=round(sum(one.seconds for one in all_of), 3),
        tiles_per_second=None,
        milliseconds={},
        other_sizes=sum(one.other_sizes for one in all_of),
        links_skipped=sum(one.links_skipped for one in all_of),
        journal_checksum=None,
        journal_dropped=sum(one.journal_dropped for one in all_of),
        parts=[_record(part) for part in parts],
    )


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _record(part: _PartOfRun) -> Part:
    summary = part.summary
    return Part(
        shard=str(part.shard),
        out=summary.out,
        out_sha256=summary.out_sha256 or "",
        journal_checksum=summary.journal_checksum,
        started=summary.started,
        ended=summary.ended,
        seconds=summary.seconds,
        tiles_per_second=summary.tiles_per_second,
        threads=summary.threads,
        host=summary.host,
    )
