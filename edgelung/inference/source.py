"""Which files a run predicts: all below its folders, or those that a list names."""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file
from edgelung.inference.destination import Destination
from edgelung.inference.listing import STANDARD_INPUT, listed_files
from edgelung.tiles.find import FoundFile, find_files


@dataclass(frozen=True)
class Source:
    """The input of a run.

    Attributes:
        folders: predicted with all that lies below them. With a list there is exactly one, which
            the paths in the list are relative to.
        listing: a list of files (see `edgelung.inference.listing`), or `-` for standard input.
        subset: of a CSV list, only the rows whose column `subset` holds this.
        follow_links: also follow links in a folder that lead out of it. Those that a list names
            are always followed.
    """

    folders: tuple[Path, ...]
    listing: Path | None = None
    subset: str | None = None
    follow_links: bool = False

    def files(self, destination: Destination, *, missing_ok: bool = False) -> Iterable[FoundFile]:
        """The files to predict, listed as they are needed; what the run itself writes is none.

        Rows are named relative to the folder, or to what several folders have in common.

        Args:
            destination: where the run writes.
            missing_ok: a folder that does not exist has no files, instead of being an error.

        Raises:
            EdgelungError: a folder does not exist or lies in another one, or the list is wrong.
        """
        if self.listing:
            return self._listed(self.listing, destination)
        if self.subset is not None:
            raise EdgelungError("--subset needs --files with a CSV that has a `subset` column")
        for folder in self.folders:
            if not (missing_ok or folder.exists()):
                raise EdgelungError(f"{folder} does not exist; expected a folder of tiles")
        _refuse_overlap(self.folders)
        own_files = {(path.name, path.absolute().parent.resolve()) for path in destination.files}
        own_names = {name for name, _ in own_files}
        return (
            file
            for file in _below(self.folders, missing_ok, self.follow_links)
            # Resolving a path is slow; the name alone rules out nearly every file.
            if os.path.basename(file.location) not in own_names or not _is_one_of(file, own_files)
        )

    def count(self, destination: Destination, stop: threading.Event) -> int | None:
        """Count the files without keeping them; None for a stream, or once `stop` is set.

        Raises what `files` raises.
        """
        if self.listing is None:
            files = self.files(destination)
        elif self.listing == STANDARD_INPUT or not self.listing.is_file():
            return None  # can be read only once
        else:
            files = listed_files(self.folders[0], self.listing, self.subset, check=False)
        count = 0
        for _ in files:
            if stop.is_set():
                return None
            count += 1
        return count

    def _listed(self, listing: Path, destination: Destination) -> Iterator[FoundFile]:
        rows = destination.rows
        if rows and listing != STANDARD_INPUT and rows.exists() and rows.samefile(listing):
            raise EdgelungError(f"--out {rows} is the list of --files; choose another name")
        if len(self.folders) != 1 or not self.folders[0].is_dir():
            raise EdgelungError(
                "--files expects exactly one FOLDER, which its paths are relative to"
            )
        return listed_files(self.folders[0], listing, self.subset)

    @property
    def folder_names(self) -> list[str]:
        """The folders as absolute, printable paths."""
        return [
            os.fsencode(folder.absolute()).decode(errors="backslashreplace")
            for folder in self.folders
        ]

    @property
    def listing_id(self) -> str | None:
        """SHA-256 of the list, or what it is if it can be read only once; None without a list."""
        if self.listing is None:
            return None
        if self.listing == STANDARD_INPUT:
            return "standard input"
        return sha256_file(self.listing) if self.listing.is_file() else "a stream"


def _is_one_of(file: FoundFile, own_files: set[tuple[str, Path]]) -> bool:
    path = Path(file.location)
    return (path.name, path.parent.resolve()) in own_files


def _refuse_overlap(folders: Sequence[Path]) -> None:
    by_real_path: dict[Path, Path] = {}
    for folder in folders:
        if (resolved := folder.resolve()) in by_real_path:
            raise EdgelungError(
                f"{folder} is {by_real_path[resolved]}; its files would have two rows each"
            )
        by_real_path[resolved] = folder
    for resolved, folder in by_real_path.items():
        for parent in resolved.parents:
            if parent in by_real_path:
                raise EdgelungError(
                    f"{by_real_path[parent]} is named too, and {folder} lies in it; its files "
                    "would have two rows each"
                )


def _below(folders: Sequence[Path], missing_ok: bool, follow_links: bool) -> Iterator[FoundFile]:
    if len(folders) == 1:
        yield from find_files(folders[0], follow_links=follow_links)
        return
    absolute = [folder.absolute() for folder in folders]
    names = [PurePosixPath(*folder.parts) for folder in absolute]
    shared = 0  # leading path components that all folders have in common
    with contextlib.suppress(IndexError):
        while len({name.parts[shared] for name in names}) == 1:
            shared += 1
    entered: set[tuple[int, int]] = set()
    for folder, name in zip(absolute, names, strict=True):
        if missing_ok and not os.path.exists(folder):
            continue
        prefix = "/".join(name.parts[shared:])
        for file in find_files(folder, entered, follow_links=follow_links, beside=absolute):
            path = prefix if not folder.is_dir() else f"{prefix}/{file.path}".lstrip("/")
            yield replace(file, path=path)
