"""What a container's limits leave of the machine."""

from pathlib import Path

import pytest

from edgelung.core import system

GIB = 2**30


def test_pages_of_files_that_were_read_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing a folder of tiles fills the page cache, and the container counts that as used."""
    monkeypatch.setattr(system, "_CGROUP", tmp_path)
    whole = system.free_memory()  # no files: no limit
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile {GIB}\ninactive_file {GIB // 2}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert system.free_memory() == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text(f"{GIB + 1000}\n")
    assert system.free_memory() == GIB // 2 + 1000
    (tmp_path / "memory.stat").unlink()
    assert system.free_memory() == 1000  # the limit holds all the same


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu avx2 fma", True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("x86_64", None, True),  # the system does not say: the slower kernels are right anywhere
        ("aarch64", None, False),
    ],
)
def test_int8_saturates_on_x86_without_vnni(
    machine: str, flags: str | None, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "cpu_flags", lambda: (flags or "").split())
    monkeypatch.setattr(system.platform, "machine", lambda: machine)
    assert system.saturates_int8() == saturates
