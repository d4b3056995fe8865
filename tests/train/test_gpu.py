"""Training on a real card: `pytest -m gpu`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgelung.train.recipe import load_recipe
from edgelung.train.run import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]

AS_QUICK = (
    "student.optimizer=muon",
    "student.init=mimetic",
    "student.restart_lr=5e-4",
    "distill.guidance=1",
    "distill.features_epochs=1",
    "augment.stain=0.2",
    "augment.light=0.1",
)


def train(tiles: Path, out: Path, settings: list[str]) -> dict[str, torch.Tensor]:
    train_run(tiles, out, load_recipe("demo", settings), groups=tiles / "groups.csv")
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_seed_gives_one_model(
    tiles: Path, small: list[str], tmp_path: Path, precision: str
) -> None:
    """Issue 3: same seed, same machine, same weights."""
    settings = [*small, *AS_QUICK, f"precision={precision}"]
    first = train(tiles, tmp_path / "first", settings)
    second = train(tiles, tmp_path / "second", settings)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert all(torch.isfinite(value).all() for value in first.values())
    run = json.loads((tmp_path / "first" / "run.json").read_text())
    assert run["precision"] == precision


def test_a_gpu_trains_as_a_cpu_does(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same views and batches, in FP32: the first losses agree, and later ones nearly."""
    settings = [*small, "distill.guidance=0.5", "precision=fp32"]
    train(tiles, tmp_path / "gpu", settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train(tiles, tmp_path / "cpu", settings)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / on / "metrics.jsonl").open()]
        for on in ("gpu", "cpu")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-2)
