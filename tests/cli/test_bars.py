"""What `edgelung` paints on a terminal while it works: totals at once, no bar before an error."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

COLUMNS = 80


def on_a_terminal(*words: object) -> tuple[int, str]:
    """Run `edgelung …`, standard error on a terminal of 80 columns: exit code, what it shows."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [Path(sys.executable).with_name("edgelung"), *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=writer,
        env=environment | {"TERM": "xterm"},
    ) as run:
        os.close(writer)
        shown = b""
        try:
            while block := os.read(reader, 4096):
                shown += block
        except OSError:  # Linux: the other end was closed
            pass
    os.close(reader)
    return run.returncode, shown.decode()


def test_infer_shows_how_many_tiles_there_are(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    code, shown = on_a_terminal(
        *("infer", tiles, "--model", bundle_folder, "--out", tmp_path / "p.csv"),
        *("--batch-size", 1, "--engine", "onnxruntime"),
    )
    assert code == 0, shown
    assert "/110" in shown
    assert "/?" not in shown


def test_an_error_before_the_first_tile_paints_no_bar(tiles: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal("infer", tiles, "--out", tmp_path / "p.xlsx")
    assert code == 2
    assert "\x1b" not in shown
