"""Faults of Ray workers for the tests: `install` writes a `sitecustomize.py` that makes them.

A worker that opens a file called `deadly…` ends at once, as by a bug in a decoder. On a node with
EDGELUNG_TEST_BLIND, workers cannot see files below that folder. Only Ray's worker processes are
changed, not the process that starts a run.
"""

from pathlib import Path

CODE = """
import ctypes, os, sys

if any("default_worker.py" in word for word in sys.orig_argv):
    blind = os.environ.get("EDGELUNG_TEST_BLIND")

    def checked(call, deadly=False):
        def checking(path, *args, **kwargs):
            name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
            if deadly and os.path.basename(name).startswith("deadly"):
                ctypes.string_at(0)
            if blind and name.startswith(blind):
                raise FileNotFoundError(2, "No such file or directory", name)
            return call(path, *args, **kwargs)
        return checking

    os.open, os.stat = checked(os.open, deadly=True), checked(os.stat)
"""


def install(folder: Path) -> dict[str, str]:
    """The environment for a cluster whose workers have the faults."""
    (folder / "sitecustomize.py").write_text(CODE)
    return {"PYTHONPATH": str(folder)}
