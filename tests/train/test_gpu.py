"""Training on a real card: `pytest -m gpu`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgelung.train.distributed import create_context
from edgelung.train.progress import Progress
from edgelung.train.recipe import load_recipe
from edgelung.train.run import train_run
from edgelung.train.stages import create_modules, create_stage
from edgelung.train.tiles import LabelledTiles
from edgelung.train.trainer import Batch, Trainer

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
    sizes = ["student.size=224", "student.low_size=112"]  # attention over 198 tokens
    settings = [*small, *AS_QUICK, *sizes, f"precision={precision}"]
    first = train(tiles, tmp_path / "first", settings)
    second = train(tiles, tmp_path / "second", settings)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert all(torch.isfinite(value).all() for value in first.values())
    run = json.loads((tmp_path / "first" / "run.json").read_text())
    assert run["precision"] == precision


def test_a_gpu_computes_what_a_cpu_does(small: list[str], tmp_path: Path) -> None:
    """One step in FP32 from the same weights and tiles: the same losses."""
    recipe = load_recipe("demo", [*small, *AS_QUICK, "distill.alpha=0.4"])
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (8, 3, 64, 64), np.uint8))
    indices = torch.arange(8)
    batch = Batch(step=0, epoch=1, tiles=pixels, labels=indices % 3, indices=indices)
    results = []
    for device in ("cpu", "cuda"):
        context = create_context("fp32")  # its settings are what is tested
        context = replace(context, device=torch.device(device))
        modules = create_modules(recipe, 3, fresh=recipe.roles)
        models = {"teacher": modules["teacher"].to(device).eval()}
        stage = create_stage(recipe, "student", modules["student"], models)
        tiles = LabelledTiles(None, batch.labels, {"train": np.arange(8)})
        checkpoint = tmp_path / f"{device}.pt"
        trainer = Trainer(stage, tiles, context, 0, Progress("student"), checkpoint)
        parts = trainer.losses(batch).parts()
        results.append({name: float(part) for name, part in parts.items()})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-3), name
