"""Run every part of the GPU check and write what it measured, anew after every part.

Each part is a process of its own with a share of the time: one that cannot run, hangs or takes the
driver down gives its reason, and the others still run.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from edgelung.core.files import atomic_write
from edgelung.core.markdown import markdown_text
from edgelung.core.system import Machine, describe_machine
from edgelung.core.typed_json import Json, parse, plain, write
from edgelung.engines.cuda import driver_version, gpu_present
from edgelung.tools.doctor import Examination, examine_machine
from edgelung.tools.gpu_check.parts import PARTS, PartOptions
from edgelung.tools.gpu_check.timing import Figures

SECONDS = 9 * 60.0
PART_SECONDS = 150.0  # the longest that one part may take
DOCTOR = "doctor"

logger = logging.getLogger(__name__)


class GpuReport(Struct, frozen=True, kw_only=True):
    """gpu-<card>.json. `parts` holds the doctor's findings and the figures of each part."""

    card: str | None
    driver: str | None
    machine: Machine
    parts: dict[str, Examination | Figures]


def gpu_check(bundle: Path, tiles: Path | None, out: Path, seconds: float = SECONDS) -> Path:
    """Run all parts; without a GPU every part has that reason.

    Args:
        bundle: the bundle whose variants are measured.
        tiles: a folder of tiles, best of 768 px; None: the parts that need files say so.
        out: the folder for gpu-<card>.json and the same as Markdown.
        seconds: the time for all parts.

    Returns:
        The JSON file.
    """
    from edgelung.tools.gpu_check.engines import card_name

    end = time.monotonic() + seconds
    has_gpu = gpu_present()
    parts: dict[str, Examination | Figures] = {DOCTOR: examine_machine()}
    report = GpuReport(
        card=card_name() if has_gpu else None,
        driver=driver_version(),
        machine=describe_machine(),
        parts=parts,
    )
    path = write_report(out, report)
    with tempfile.TemporaryDirectory() as scratch:
        # An empty cache, so that what is timed as a build is one.
        environment = os.environ | {"EDGELUNG_CACHE": f"{scratch}/cache"}
        for name in PARTS:
            start = time.monotonic()
            if has_gpu:
                options = PartOptions(str(bundle), None if tiles is None else str(tiles), scratch)
                command = part_command(name, options)
                figures = run_part(command, min(PART_SECONDS, end - start), environment)
            else:
                figures = {"cannot_run": "no GPU"}
            result = figures.get("cannot_run", "done")
            logger.info("%s: %s (%.1f s)", name, result, time.monotonic() - start)
            parts[name] = figures
            write_report(out, report)
    return path


def part_command(name: str, options: PartOptions) -> list[str]:
    """Return the command that runs one part and prints its figures as its last line."""
    module = "edgelung.tools.gpu_check.parts"
    return [sys.executable, "-m", module, name, json.dumps(plain(options))]


def run_part(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Figures:
    """Return the figures that a process prints as its last line, or why there are none."""
    if seconds < 1:
        return {"cannot_run": "the time was over"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"cannot_run": f"it had not ended after {seconds:.0f} s"}
    lines = out.decode(errors="replace").splitlines()
    if process.returncode == 0 and lines:
        figures: Figures = parse(lines[-1])
        return figures
    last = err.decode(errors="replace").split("\n\n")[-1].strip().splitlines() or ["no message"]
    return {"cannot_run": f"{last[-1][:400]} (exit code {process.returncode})"}


def write_report(folder: Path, report: GpuReport) -> Path:
    """Write the JSON and the Markdown file, as far as the report goes."""
    card = re.sub(r"[^a-z0-9]+", "-", (report.card or "none").lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{card}.json"
    write(path, report)
    with atomic_write(path.with_suffix(".md"), "w", encoding="utf-8") as file:
        file.write(_markdown(report))
    return path


def _markdown(report: GpuReport) -> str:
    """One table per part; a reason where there are no figures."""
    lines = [f"# GPU check: {markdown_text(report.card or 'no GPU')}", ""]
    lines += [f"Driver {report.driver}; {markdown_text(json.dumps(plain(report.machine)))}", ""]
    for name, figures in report.parts.items():
        if isinstance(figures, Examination):
            continue
        lines += [f"## {name}", ""]
        if "cannot_run" in figures:
            lines += [f"not run: {_cell(figures['cannot_run'])}", ""]
            continue
        lines += ["| what | figures |", "|---|---|"]
        lines += [f"| {markdown_text(key)} | {_cell(value)} |" for key, value in figures.items()]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Json) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{markdown_text(k)} {_cell(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else markdown_text(str(value))
