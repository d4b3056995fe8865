"""How fast does training go, beside the loop that people write, on the same work?

    python benchmarks/train.py TILES [--rounds 7] [--timm-script train.py] [--json FILE]

All train a distilled DeiT-tiny of 224 px from a frozen EfficientNet-lite0, in batches of 64, with
this machine's automatic precision and AdamW; flips, rotations and crops of the same ranges, and a
change of colour.

- edgelung: the trainer of `edgelung train`, without guidance and without windows.
- edgelung, not tuned: the same without `edgelung.train.cpu` (on a CPU only).
- plain: timm's model and `TokenDistillationTask`, torchvision's `ImageFolder` and transforms, a
  `DataLoader` with a worker per core, autocast.
- model alone: edgelung's step on a batch of views that are there already.
- teacher, teacher not tuned: edgelung's training of the EfficientNet itself.

A round is STEPS steps of each, in turns, each after a step that is not timed: in it the workers of
the plain loop fill their queue again. So the plain loop starts with some batches for nothing.

`--timm-script`: the train.py of a checkout of pytorch-image-models, which runs after the rounds in
a process of its own, on the same model, teacher, batch, precision, optimizer and tiles, with its
own augmentation. Prints a table and writes JSON.
"""

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import machine
import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.task import TokenDistillationTask
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from edgelung.core.system import available_cores
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.cpu import (
    M_MMAP_MAX,
    M_TRIM_THRESHOLD,
    keep_freed_memory,
    tune_for_cpu,
)
from edgelung.train.distributed import DistributedContext, create_context
from edgelung.train.index import index_tiles
from edgelung.train.progress import Progress
from edgelung.train.recipe import Recipe, load_recipe
from edgelung.train.stages import create_modules, create_stage
from edgelung.train.tiles import LabelledTiles, TileStore, prefetch
from edgelung.train.trainer import Batch, Trainer

BATCH, TILES, STEPS = 64, 2048, 12
LAST_STEPS = 2 * STEPS  # whose mean loss is compared, on a CPU: tuned and not, on the same batches
UNTUNED = ", not tuned"
# The defaults of glibc (malloc.h): the threshold of mmap as it is once large blocks were freed.
MALLOC_DEFAULTS = {-3: 32 << 20, M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20}
CHANGES = [
    *("teacher.weights=none", "teacher.size=224", "student.init=timm", "student.low_epochs=0"),
    *("student.optimizer=adamw", "student.lr=1e-4", "student.restart_lr=0", "student.ema_decay=0"),
    *("distill.guidance=0", "distill.features_epochs=0", f"student.batch_size={BATCH}"),
    *("student.epochs=1000", "student.warmup_epochs=0"),
]

Step = Callable[[], None]
Losses = defaultdict[str, list[float]]  # of every step of a loop, by its name


def main() -> None:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    default = Path(__file__).parent / "results" / "train.json"
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("--timm-script", type=Path)
    options = parser.parse_args()
    recipe, context = load_recipe("quick", CHANGES), create_context("auto")
    with tempfile.TemporaryDirectory() as folder:
        losses: Losses = defaultdict(list)
        loops = create_loops(options.tiles, recipe, context, Path(folder), losses)
        rates = measure(loops, options.rounds, context)
        if options.timm_script:
            rates["timm's train.py"] = timm_rates(options, recipe, context, Path(folder))
    result = {
        "work": f"{recipe.student.model} at 224 px, teacher {recipe.teacher.model}, batch {BATCH}",
        "precision": context.precision,
        "steps_per_round": STEPS,
        "tiles_per_second": rates,
        "edgelung_over_plain": ratios(rates, "edgelung", "plain"),
        "share_of_the_step_that_is_model": ratios(rates, "edgelung", "model alone"),
        "machine": machine.describe(),
    }
    for role in ("edgelung", "teacher"):
        if role + UNTUNED in rates:
            result[f"{role}_over_not_tuned"] = ratios(rates, role, role + UNTUNED)
            found = [losses[name][-LAST_STEPS:] for name in (role, role + UNTUNED)]
            result[f"{role}_loss_of_the_last_steps"] = [statistics.mean(one) for one in found]
    if options.timm_script:
        alone = statistics.median(rates["timm's train.py"])
        result["edgelung_over_timm"] = statistics.median(rates["edgelung"]) / alone
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("loop", "tiles/s, median", "slowest", "fastest")
    for name, found in rates.items():
        table.add_row(name, *(f"{f(found):.1f}" for f in (statistics.median, min, max)))
    Console().print(table)
    for name in result:
        if "over" in name or "share" in name or "loss" in name:
            print(name, result[name])


def create_loops(
    tiles: Path, recipe: Recipe, context: DistributedContext, scratch: Path, losses: Losses
) -> dict[str, Step]:
    """A step of each loop, by name; edgelung's own add theirs to `losses`."""
    tuned = context.device.type == "cpu"

    def trainer(role: str, tune: bool) -> Trainer:
        return own_trainer(tiles, recipe, role, context, scratch, tune)

    loops = {
        "edgelung": own_step(trainer("student", tuned), losses["edgelung"]),
        "plain": plain_step(tiles, recipe, context),
        "model alone": model_step(trainer("student", tuned)),
        "teacher": own_step(trainer("teacher", tuned), losses["teacher"]),
    }
    for name, role in (("edgelung", "student"), ("teacher", "teacher")) if tuned else ():
        without = name + UNTUNED
        loops[without] = own_step(trainer(role, tune=False), losses[without])
    return loops


def measure(
    loops: dict[str, Step], rounds: int, context: DistributedContext
) -> dict[str, list[float]]:
    """Tiles/s of each loop in each round, after one that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name, step in loops.items():
            if name == "plain" or name.endswith(UNTUNED):
                restore_malloc()
            else:
                keep_freed_memory()
            step()
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(STEPS * BATCH / (time.perf_counter() - started))
    return rates


def restore_malloc() -> None:
    """Let glibc give memory back as it does by default."""
    for parameter, value in MALLOC_DEFAULTS.items():
        ctypes.CDLL(None).mallopt(parameter, value)


def ratios(rates: dict[str, list[float]], first: str, second: str) -> dict[str, float]:
    """Quotient of two loops, of the rounds: median and range."""
    found = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
    return {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}


def own_trainer(
    folder: Path, recipe: Recipe, role: str, context: DistributedContext, scratch: Path, tune: bool
) -> Trainer:
    """The trainer of a role; the student's has its teacher ready."""
    tiles = index_tiles(folder)
    tiles = tiles[:: max(1, len(tiles) // TILES)][:TILES]
    classes = sorted({tile.label for tile in tiles})
    store = TileStore([folder / tile.path for tile in tiles], ReaderSpec(size=recipe.student.size))
    labels = torch.tensor([classes.index(tile.label) for tile in tiles])
    everything = np.arange(len(tiles), dtype=np.int64)
    labelled = LabelledTiles(store, labels, {"train": everything, "val": everything[:BATCH]})
    modules = create_modules(recipe, len(classes), recipe.roles)
    if tune:
        tune_for_cpu(modules.values())
    models = {"teacher": modules["teacher"].to(context.device).eval()} if role == "student" else {}
    stage = create_stage(recipe, role, modules[role], models)
    return Trainer(stage, labelled, context, 0, Progress(role), scratch / "checkpoint.pt")


def own_step(trainer: Trainer, history: list[float]) -> Step:
    """A step as `edgelung train` does it, the next batch read ahead; its loss goes to `history`."""
    batches = prefetch(trainer.load_batch, range(trainer.total_steps))

    def step() -> None:
        batch = next(batches)
        before = trainer.progress.losses.get("loss", 0.0)
        trainer.unread.append(trainer.step(batch))
        if len(trainer.unread) == trainer.steps_per_read:
            trainer.read_losses()
            history.append(trainer.progress.losses["loss"] - before)

    return step


def model_step(trainer: Trainer) -> Step:
    """A step on one batch of views: models, losses and optimizer, nothing else."""
    context, stage = trainer.context, trainer.stage
    batch: Batch = trainer.load_batch(0)
    images = torch.randn(BATCH, 3, stage.full_view, stage.full_view, device=context.device)
    labels = batch.labels.to(context.device)
    optimizer = trainer.state.optimizer

    def step() -> None:
        trainer.module.train()
        with context.autocast():
            output = trainer.module(images)
            loss = stage.loss(output, images, labels, batch.indices).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_step(folder: Path, recipe: Recipe, context: DistributedContext) -> Step:
    """A step of the loop that people write."""
    device, views = context.device, recipe.augment
    student = timm.create_model(recipe.student.model, num_classes=3).to(device)
    teacher = timm.create_model(recipe.teacher.model, num_classes=3).to(device)
    task = TokenDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(label_smoothing=recipe.student.label_smoothing),
        distill_type="soft",
        temperature=recipe.distill.temperature,
        task_loss_weight=recipe.distill.alpha,
        distill_loss_weight=recipe.distill.beta,
        device=device,
        verbose=False,
    )
    config = student.pretrained_cfg
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(views.hflip),
            v2.RandomAffine(degrees=views.rotate, scale=views.scale, interpolation=2),
            v2.ColorJitter(brightness=views.light, contrast=views.light, saturation=views.stain),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    loader = DataLoader(
        ImageFolder(folder, transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=available_cores(),
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=recipe.student.lr, weight_decay=recipe.student.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=context.precision == "fp16")
    batches: Iterator[list[torch.Tensor]] = (batch for _ in count() for batch in loader)

    def step() -> None:
        task.train()
        images, labels = (part.to(device, non_blocking=True) for part in next(batches))
        with context.autocast():
            loss = task(images, labels)["loss"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


# timm's script takes pretrained weights for the teacher, which need a network.
WITHOUT_WEIGHTS = """
import runpy, sys, timm
create = timm.models.create_model
def without_weights(name, pretrained=False, **options):
    return create(name, pretrained=False, **options)
timm.create_model = timm.models.create_model = without_weights
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def timm_rates(
    options: argparse.Namespace, recipe: Recipe, context: DistributedContext, scratch: Path
) -> list[float]:
    """Tiles/s of each step of timm's own script, after the first ones, on links to some tiles."""
    tiles = index_tiles(options.tiles)
    for tile in tiles[:: max(1, len(tiles) // TILES)][:TILES]:
        link = scratch / "tiles" / tile.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((options.tiles / tile.path).absolute())
    names = {"fp32": [], "bf16": ["--amp", "--amp-dtype", "bfloat16"], "fp16": ["--amp"]}
    settings: dict[str, object] = {
        "model": recipe.student.model,
        "kd-model-name": recipe.teacher.model,
        "kd-distill-type": "token",
        "kd-temperature": recipe.distill.temperature,
        "task-loss-weight": recipe.distill.alpha,
        "distill-loss-weight": recipe.distill.beta,
        "device": context.device.type,
        "num-classes": 3,
        "train-split": "",
        "val-split": "",
        "batch-size": BATCH,
        "opt": "adamw",
        "lr": recipe.student.lr,
        "epochs": 1,
        "warmup-epochs": 0,
        "workers": available_cores(),
        "log-interval": 1,
        "output": scratch / "timm",
    }
    written = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-c", WITHOUT_WEIGHTS, str(options.timm_script)]
    program = subprocess.run(
        [*command, str(scratch / "tiles"), *written, *names[context.precision]],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = re.findall(r"Train: .*?Time: ([\d.]+)s", program.stderr + program.stdout)
    return [BATCH / float(one) for one in seconds[2:]]


if __name__ == "__main__":
    main()
