"""Elsewhere than on Linux the command line says so, in one line, before it does anything."""

import subprocess
import sys

import pytest

from edgelung.core.platforms import refusal


def test_linux_is_not_refused() -> None:
    assert refusal("linux") == ""


@pytest.mark.parametrize(
    ("platform", "name", "remedy"),
    [
        ("win32", "Windows", "WSL2"),
        ("cygwin", "Windows", "WSL2"),
        ("darwin", "macOS", "container"),
        ("freebsd14", "freebsd14", "container"),
    ],
)
def test_other_systems_end_with_one_line_and_exit_code_2(
    platform: str, name: str, remedy: str
) -> None:
    code = (
        "import sys\n"
        "from edgelung import cli\n"
        f"sys.platform = {platform!r}\n"
        "sys.argv = ['edgelung', '--version']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"edgelung: found {name}")
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) == 1
