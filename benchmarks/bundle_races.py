"""Swap races on opening a bundle: one process exchanges its files while another opens and loads it.

The other content fits the profile and turns the classes around, so it counts as a success of the
attack if it is ever loaded. Prints the counts and writes JSON. Needs the tests beside it.
"""

import argparse
import json
import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import machine

from edgelung.artifacts.bundle import open_bundle
from edgelung.core.errors import EdgelungError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "attacks"))
from tiny import GRAPH, other_model, tiny_bundle

TRIES = 100_000
SLOW_SECONDS = 5  # a try that takes longer was made to wait
TILE = "golden/00.png"


class Swaps:
    """The ways to exchange something, each there and back. `spare` lies on the same disk."""

    def __init__(self, bundle: Path, spare: Path) -> None:
        self.bundle, self.spare = bundle, spare
        self.graph, self.tile = (bundle / GRAPH).read_bytes(), (bundle / TILE).read_bytes()
        self.other = other_model()
        (spare / "other.onnx").write_bytes(self.other)
        shutil.copytree(bundle / "golden", spare / "golden")
        (spare / "golden" / "00.png").write_bytes(b"other")
        tiny_bundle(spare / "bundle", self.other)
        # The other graph below the first one's manifest and seal: only its bytes betray it.
        for name in ("bundle.json", "bundle.json.sha256"):
            shutil.copy(bundle / name, spare / "bundle" / name)

    def put(self, name: str, data: bytes) -> None:
        """Replace a file of the bundle atomically."""
        (self.spare / "new").write_bytes(data)
        (self.spare / "new").rename(self.bundle / name)

    def by_rename(self) -> Iterator[None]:
        self.put(GRAPH, self.other)
        yield
        self.put(GRAPH, self.graph)

    def by_link(self) -> Iterator[None]:
        (self.spare / "link").symlink_to(self.spare / "other.onnx")
        (self.spare / "link").rename(self.bundle / GRAPH)
        yield
        self.put(GRAPH, self.graph)

    def in_place(self) -> Iterator[None]:
        for data in (self.other, self.graph):
            with (self.bundle / GRAPH).open("r+b") as file:
                file.write(data)
            yield

    def by_fifo(self) -> Iterator[None]:
        os.mkfifo(self.spare / "fifo")
        (self.spare / "fifo").rename(self.bundle / GRAPH)
        yield
        self.put(GRAPH, self.graph)

    def folder_by_link(self) -> Iterator[None]:
        (self.bundle / "golden").rename(self.spare / "kept")
        (self.bundle / "golden").symlink_to(self.spare / "golden")
        yield
        (self.bundle / "golden").unlink()
        (self.spare / "kept").rename(self.bundle / "golden")

    def whole_bundle(self) -> Iterator[None]:
        for _ in range(2):
            self.bundle.rename(self.spare / "away")
            (self.spare / "bundle").rename(self.bundle)
            (self.spare / "away").rename(self.spare / "bundle")
            yield

    def unlisted(self) -> Iterator[None]:
        (self.bundle / "w.bin").write_bytes(b"x")
        yield
        (self.bundle / "w.bin").unlink()


KINDS: dict[str, Callable[[Swaps], Iterator[None]]] = {
    "a file renamed over the graph": Swaps.by_rename,
    "a link in place of the graph": Swaps.by_link,
    "the graph overwritten in place": Swaps.in_place,
    "a FIFO in place of the graph": Swaps.by_fifo,
    "the folder of golden tiles as a link": Swaps.folder_by_link,
    "the whole bundle exchanged": Swaps.whole_bundle,
    "an unlisted file": Swaps.unlisted,
}


def attack(bundle: Path, spare: Path, kind: str, stop: multiprocessing.synchronize.Event) -> None:
    """Swap until told to stop; pauses of different length let both states be seen."""
    swaps = Swaps(bundle, spare)
    number = 0
    while not stop.is_set():
        for _ in KINDS[kind](swaps):
            time.sleep(number % 5 * 2e-4)
        time.sleep(number % 7 * 2e-4)
        number += 1


def race(folder: Path, kind: str, tries: int) -> dict[str, int]:
    """Open and load the bundle `tries` times while it is attacked."""
    bundle, spare = tiny_bundle(folder / "bundle"), folder / "spare"
    spare.mkdir()
    graph, tile = (bundle / GRAPH).read_bytes(), (bundle / TILE).read_bytes()
    counts = dict.fromkeys(("tries", "loaded", "refused", "successes", "waited", "crashed"), 0)
    stop = multiprocessing.Event()
    attacker = multiprocessing.Process(target=attack, args=(bundle, spare, kind, stop))
    attacker.start()
    try:
        for _ in range(tries):
            start = time.monotonic()
            counts["tries"] += 1
            try:
                opened = open_bundle(bundle)
                same = opened.variants["fp32"].graph.read() == graph
                same &= opened.golden[0].file.read() == tile
                counts["loaded"] += 1
                counts["successes"] += not same
            except EdgelungError:
                counts["refused"] += 1
            except Exception as error:
                print(f"{kind}: {error!r}")
                counts["crashed"] += 1
            counts["waited"] += time.monotonic() - start > SLOW_SECONDS
    finally:
        stop.set()
        attacker.join(30)
        with suppress(ValueError):
            attacker.kill()
    return counts


def main() -> None:
    """Race, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "results" / "bundle-races.json"
    parser.add_argument("json", type=Path, nargs="?", default=default)
    parser.add_argument("--tries", type=int, default=TRIES)
    options = parser.parse_args()
    os.environ["EDGELUNG_CACHE"] = "off"
    result: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(KINDS):
            tries = -(-options.tries // len(KINDS))
            result[kind] = race(Path(folder) / str(number), kind, tries)
            print(kind, result[kind], flush=True)
    total = {
        key: sum(counts[key] for counts in result.values())
        for key in ("tries", "loaded", "refused", "successes", "waited", "crashed")
    }
    content = {"total": total, "by attack": result, "machine": machine.describe()}
    options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print("total", total)


if __name__ == "__main__":
    main()
