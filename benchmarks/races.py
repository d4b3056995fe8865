"""Swap races: another process renames what edgelung is about to open, as fast as it can.

    python benchmarks/races.py cache cache-link outputs output-name journal \
        --tries 100000 --json benchmarks/results/races-files.json

A race is won if one of the tries takes what the attacker placed, or writes to a file that is not
ours. The attacker swaps two names in one step (renameat2 with RENAME_EXCHANGE), so neither is ever
missing. `refused` counts the tries that met the attacker's side: without them the
race was not run. Linux only. Root gives the attacker's files to another user; without root they are
writable by all, which must be refused as well.
"""

import argparse
import ctypes
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine

from edgelung.core.cache import Cache, Key
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write, check_output_file
from edgelung.core.folder import Folder
from edgelung.core.locks import locked
from edgelung.inference.destination import Destination, check_rows
from edgelung.inference.output import write_whole

KEY = Key("engine", {"graph": "abc"})
MINE, ATTACK, SECRET = b"mine", b"attack", b"somebody else's work"
ROWS = b"path,status,label,confidence,p_a,error\n"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def main() -> None:
    """Run the races, print and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("races", nargs="+", choices=RACES)
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.describe(), "tries": options.tries, "races": {}}
    for name in options.races:
        with tempfile.TemporaryDirectory() as folder:
            result["races"][name] = run(RACES[name], Path(folder), options.tries)
        print(name, result["races"][name], flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def run(race: "Callable[[Path], Race]", folder: Path, tries: int) -> dict[str, Any]:
    """Try so many times against an attacking process: what came of it."""
    counts = {"won": 0, "ours": 0, "refused": 0}
    start = time.perf_counter()
    first, second, attempt = race(folder)
    with attacking(first, second):
        for _ in range(tries):
            counts[attempt()] += 1
    return counts | {"seconds": round(time.perf_counter() - start, 1)}


Race = tuple[Path, Path, Callable[[], str]]  # what is swapped, and one try: its outcome


@contextmanager
def attacking(first: Path, second: Path) -> Iterator[None]:
    """Swap two names in another process while the block runs."""
    process = os.fork()
    if process == 0:
        exchange = ctypes.CDLL(None).renameat2
        names = AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE
        while True:
            exchange(*names)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def give_away(path: Path) -> None:
    """Make a file or folder another user's; without root, one that all can write to."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    else:
        path.chmod(0o777)


def read_entry(folder: Path) -> str:
    """Read the entry of the cache: whose it is."""
    try:
        data = Cache(folder / "mine" / "cache").get(KEY).data
    except EdgelungError:
        return "refused"
    return {MINE: "ours", ATTACK: "won", None: "refused"}[data]


def cache_race(folder: Path) -> Race:
    """A folder above the cache is the attacker's every other moment, with a forged entry."""
    Cache(folder / "mine" / "cache").put(KEY, MINE)
    Cache(folder / "evil" / "cache").put(KEY, ATTACK)
    give_away(folder / "evil")
    return folder / "mine", folder / "evil", lambda: read_entry(folder)


def link_race(folder: Path) -> Race:
    """A folder above the cache is a link to the attacker's every other moment."""
    Cache(folder / "mine" / "cache").put(KEY, MINE)
    Cache(folder / "theirs" / "cache").put(KEY, ATTACK)
    (folder / "evil").symlink_to("theirs")
    give_away(folder / "theirs")
    return folder / "mine", folder / "evil", lambda: read_entry(folder)


def outputs_race(folder: Path) -> Race:
    """The folder of the output is a link to somebody's folder every other moment."""
    (folder / "out").mkdir()
    (folder / "theirs").mkdir()
    victim = folder / "theirs" / "rows.csv"
    victim.write_bytes(SECRET)
    (folder / "evil").symlink_to("theirs")
    kind = Destination.parse(folder / "out" / "rows.csv").format

    def attempt() -> str:
        try:
            with Folder(folder / "out") as opened:  # as a run does: checked and written in one
                check_rows(opened, "rows.csv", kind)
                write_whole(opened, "rows.csv", lambda file: void(file.write(ROWS)))
        except EdgelungError:
            outcome = "refused"
        else:
            outcome = "ours"
        return outcome if victim.read_bytes() == SECRET else "won"

    return folder / "out", folder / "evil", attempt


def name_race(folder: Path) -> Race:
    """The output itself is a link to somebody's file every other moment."""
    (folder / "out").mkdir()
    victim = folder / "victim"
    victim.write_bytes(SECRET)
    out, evil = folder / "out" / "page.html", folder / "out" / "evil"
    out.write_bytes(ROWS)
    evil.symlink_to(victim)

    def attempt() -> str:
        if not evil.is_symlink() and not out.is_symlink():  # replaced: plant it again
            out.unlink()
            out.symlink_to(victim)
        try:
            check_output_file(out)
            with atomic_write(out) as file:
                file.write(ROWS)
        except EdgelungError:
            outcome = "refused"
        else:
            outcome = "ours"
        return outcome if victim.read_bytes() == SECRET else "won"

    return out, evil, attempt


def journal_race(folder: Path) -> Race:
    """The journal is a link to somebody's file every other moment."""
    victim = folder / "victim"
    victim.write_bytes(SECRET)
    (folder / "journal").touch()
    (folder / "evil").symlink_to(victim)

    def attempt() -> str:
        try:
            with Folder(folder) as opened:
                handle = locked(opened, "journal", "busy")
        except (EdgelungError, OSError):
            outcome = "refused"
        else:
            outcome = "ours"
            os.ftruncate(handle, 0)
            os.close(handle)
        return outcome if victim.read_bytes() == SECRET else "won"

    return folder / "journal", folder / "evil", attempt


def void(value: object) -> None:
    """Nothing: `write` returns a number that its caller has no use for."""


RACES: dict[str, Callable[[Path], Race]] = {
    "cache": cache_race,
    "cache-link": link_race,
    "outputs": outputs_race,
    "output-name": name_race,
    "journal": journal_race,
}

if __name__ == "__main__":
    main()
