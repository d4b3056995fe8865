"""How fast does training go, beside the loop that people write, on the same work?

    python benchmarks/train.py TILES [--rounds 7] [--steps 12] [--student-alone]
        [--timm-script train.py] [--json FILE]

All train a distilled DeiT-tiny of 224 px from a frozen EfficientNet-lite0, in batches of 64, with
this machine's automatic precision and AdamW; flips, rotations and crops of the same ranges, and a
change of colour.

- edgelung: the trainer of `edgelung train`, without guidance and without windows.
- edgelung, not tuned: the same without `edgelung.train.cpu` (on a CPU only).
- plain: timm's model and `TokenDistillationTask`, torchvision's `ImageFolder` and transforms, a
  `DataLoader` with a worker per core, autocast.
- model alone: edgelung's step on a batch of views that are there already.
- teacher, teacher not tuned: edgelung's training of the EfficientNet itself.

Each loop has a process of its own. A round is some steps of each, in turns, each after a step that
is not timed: in it the workers of the plain loop fill their queue again. So the plain loop starts
with some batches for nothing. The losses of edgelung's own loops are of the same batches, so the
means of the last steps can be compared.

`--student-alone` leaves the teacher's training out, which needs most of the memory.
`--timm-script`: the train.py of a checkout of pytorch-image-models, which runs after the rounds in
a process of its own, on the same model, teacher, batch, precision, optimizer and tiles, with its
own augmentation. Prints a table and writes JSON.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import NamedTuple

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
from edgelung.train.cpu import tune_for_cpu
from edgelung.train.distributed import DistributedContext, create_context
from edgelung.train.index import index_tiles
from edgelung.train.progress import Progress
from edgelung.train.recipe import Recipe, load_recipe
from edgelung.train.stages import create_modules, create_stage
from edgelung.train.tiles import DecodedTiles, LabelledTiles, TileStore, prefetch
from edgelung.train.trainer import Batch, Trainer

BATCH, TILES = 64, 2048
UNTUNED = ", not tuned"
CHANGES = [
    *("teacher.weights=none", "teacher.size=224", "student.init=timm", "student.low_epochs=0"),
    *("student.optimizer=adamw", "student.lr=1e-4", "student.restart_lr=0", "student.ema_decay=0"),
    *("distill.guidance=0", "distill.features_epochs=0", f"student.batch_size={BATCH}"),
    *("student.epochs=1000", "student.warmup_epochs=0"),
]

Step = Callable[[], None]
ROLES = {"edgelung": "student", "teacher": "teacher", "model alone": "student"}


class Measured(NamedTuple):
    """A loop's tiles/s in each round, its losses in steps, and its largest memory in MiB."""

    rates: list[float]
    losses: list[float]
    memory: int


def main() -> None:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12, help="of each loop in a round")
    parser.add_argument("--student-alone", action="store_true")
    default = Path(__file__).parent / "results" / "train.json"
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("--timm-script", type=Path)
    options = parser.parse_args()
    recipe, context = load_recipe("quick", CHANGES), create_context("auto")
    roles = ["edgelung"] if options.student_alone else ["edgelung", "teacher"]
    names = [*roles, "plain", "model alone"]
    if context.device.type == "cpu":
        names += [role + UNTUNED for role in roles]
    measured = measure(options.tiles, names, options.rounds, options.steps)
    rates = {name: one.rates for name, one in measured.items()}
    if options.timm_script:
        with tempfile.TemporaryDirectory() as folder:
            rates["timm's train.py"] = timm_rates(options, recipe, context, Path(folder))
    result = {
        "work": f"{recipe.student.model} at 224 px, teacher {recipe.teacher.model}, batch {BATCH}",
        "precision": context.precision,
        "steps_per_round": options.steps,
        "tiles_per_second": rates,
        "largest_memory_mib": {name: one.memory for name, one in measured.items()},
        "edgelung_over_plain": ratios(rates, "edgelung", "plain"),
        "share_of_the_step_that_is_model": ratios(rates, "edgelung", "model alone"),
        "machine": machine.describe(),
    }
    last = 2 * options.steps  # with and without the settings for CPUs, on the same batches
    for role in roles:
        if role + UNTUNED in rates:
            result[f"{role}_over_not_tuned"] = ratios(rates, role, role + UNTUNED)
            result[f"{role}_loss_of_the_last_steps"] = [
                statistics.mean(measured[name].losses[-last:]) for name in (role, role + UNTUNED)
            ]
    if options.timm_script:
        alone = statistics.median(rates["timm's train.py"])
        result["edgelung_over_timm"] = statistics.median(rates["edgelung"]) / alone
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("loop", "tiles/s, median", "slowest", "fastest")
    for name, found in rates.items():
        table.add_row(name, *(f"{f(found):.1f}" for f in (statistics.median, min, max)))
    Console().print(table)
    for name in result:
        if any(word in name for word in ("over", "share", "loss", "memory")):
            print(name, result[name])


def measure(tiles: Path, names: list[str], rounds: int, steps: int) -> dict[str, Measured]:
    """Run each loop in a process of its own, all in turns, after a round that warms up."""
    spawn = multiprocessing.get_context("spawn")
    workers = {}
    with ExitStack() as stack:
        for name in names:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=work, args=(theirs, tiles, name))
            process.start()
            stack.callback(process.terminate)
            ours.recv()  # ready; one after the other, so that none is measured beside a start
            workers[name] = ours
        rates: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, worker in workers.items():
                worker.send(steps)
                seconds = worker.recv()
                if number:
                    rates[name].append(steps * BATCH / seconds)
        measured = {}
        for name, worker in workers.items():
            worker.send(0)
            measured[name] = Measured(rates[name], *worker.recv())
        return measured


def work(pipe: Connection, tiles: Path, name: str) -> None:
    """Run as many steps of a loop as asked for, and answer with the seconds; at 0 with the rest."""
    recipe, context = load_recipe("quick", CHANGES), create_context("auto")
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if name == "plain":
            step = plain_step(tiles, recipe, context)
        else:
            tune = context.device.type == "cpu" and not name.endswith(UNTUNED)
            role = ROLES[name.removesuffix(UNTUNED)]
            trainer = own_trainer(tiles, recipe, role, context, Path(folder), tune)
            step = model_step(trainer) if name == "model alone" else own_step(trainer, losses)
        step()
        pipe.send("ready")
        while steps := pipe.recv():
            step()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - started)
        pipe.send((losses, getrusage(RUSAGE_SELF).ru_maxrss // 1024))


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
    labelled = LabelledTiles(
        DecodedTiles(store), labels, {"train": everything, "val": everything[:BATCH]}
    )
    modules = create_modules(recipe, len(classes), recipe.roles)
    if tune:
        tune_for_cpu(modules.values(), bf16=context.precision == "bf16")
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
def without_weights(model_name, pretrained=False, *args, **options):
    return create(model_name, False, *args, **options)
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
