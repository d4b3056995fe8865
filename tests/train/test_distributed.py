"""Several processes give what one gives: torchrun over gloo, on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgelung.core.errors import EdgelungError
from edgelung.train.distributed import create_context

# A teacher without batch statistics: they are of a process's own tiles unless a GPU shares them.
# Beside it a probe, whose features are gathered from all processes.
SETTINGS = [
    'teacher.model=["convnext_atto", "test_vit2"]',
    "teacher.settings.test_vit2.fit=probe",
    "precision=fp32",
    "student.batch_size=8",
    "teacher.ema_decay=0.9",
    "student.ema_decay=0.9",
    "augment.stain=0.2",
    "augment.light=0.1",
    "distill.guidance=0.5",
    "student.exits=[2, 5]",
]
OWN_FILES = (  # every file or folder that takes its final name below the run, with the rank
    "import os, sys\n"
    "def hook(event, args):\n"
    "    if event == 'os.rename' and 'run-2' in str(args[1]):\n"
    "        sys.stderr.write(f'WROTE {os.environ[\"RANK\"]} {args[1]}\\n')\n"
    "sys.addaudithook(hook)\n"
    "from edgelung.cli import main; main()\n"
)


def train(tiles: Path, out: Path, small: list[str], processes: int) -> str:
    script = out.with_suffix(".py")
    script.write_text(OWN_FILES)
    words = ["train", tiles, "--out", out, "--recipe", "demo", "--groups", tiles / "groups.csv"]
    words += [word for text in [*small, *SETTINGS] for word in ("--set", text)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*map(str, launcher), str(script), *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.timeout(600)
def test_two_processes_train_like_one(
    tiles: Path, run: Path, small: list[str], tmp_path: Path
) -> None:
    """Issue 3: the loss to 1e-4, whole metrics of a set that does not divide, one writer."""
    split = (run / "split.csv").read_text().splitlines()
    tested = next(row.split(",")[0] for row in split if ",test," in row)
    tiles = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    (tiles / tested).unlink()  # leaves an odd number to test
    folders = [tmp_path / "run-1", tmp_path / "run-2"]
    logs = [train(tiles, folder, small, n) for n, folder in enumerate(folders, start=1)]

    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    )
    assert [r["stage"] for r in one] == ["teacher/convnext_atto", "student", "student"]
    for first, second in zip(one, two, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first["val_loss"] == pytest.approx(second["val_loss"], abs=1e-3)
    probes = [load_file(folder / "teacher/test_vit2/model.safetensors") for folder in folders]
    torch.testing.assert_close(probes[0], probes[1], atol=1e-3, rtol=1e-3)
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    largest = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    assert largest < 1e-2  # sums in another order, and AdamW's first steps make much of it

    rows = [(folder / "predictions.csv").read_text().splitlines() for folder in folders]
    assert [r.split(",")[:4] for r in rows[0]] == [r.split(",")[:4] for r in rows[1]]
    tested = sum(",test," in row for row in rows[0])
    assert tested % 2 == 1, "the test set divides evenly: this test shows nothing"
    shares = [np.array([r.split(",")[4:] for r in part[1:]], float) for part in rows]
    assert np.abs(shares[0] - shares[1]).max() < 1e-2
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0]["student"]["test"]["tiles"] == metrics[1]["student"]["test"]["tiles"]

    wrote = [line.split()[1] for line in logs[1].splitlines() if line.startswith("WROTE")]
    assert wrote
    assert set(wrote) == {"0"}
    assert logs[1].count("training on cpu in fp32, 2 processes") == 1


def test_a_batch_that_cannot_be_shared_is_refused(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    words = ["train", tiles, "--out", tmp_path / "run", "--recipe", "demo"]
    words += ["--groups", tiles / "groups.csv"]
    words += [w for text in [*small, "teacher.batch_size=7"] for w in ("--set", text)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "edgelung", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "batch_size is 7; expected a multiple of the number of processes, 2" in done.stderr


def test_half_precision_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EdgelungError, match="fp16 needs a CUDA device"):
        create_context("fp16")
    assert create_context("fp32").precision == "fp32"
