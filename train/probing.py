"""Linear probes in a run: on a frozen model's features of views, or on features of whole tiles."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_write, writing
from edgelung.train.augment import augment
from edgelung.train.distributed import run_on_main
from edgelung.train.models import Model
from edgelung.train.origins import features_origin
from edgelung.train.prepare import Run
from edgelung.train.preprocess import normalise
from edgelung.train.probe import LinearProbe, fit_probe
from edgelung.train.seeds import derive_seed
from edgelung.train.stages import Stage, timm_model
from edgelung.train.tile_features import read_tile_features
from edgelung.train.trainer import global_batch_size

logger = logging.getLogger(__name__)

LOGITS = "logits"  # the tensor in soft_labels.safetensors


def train_probe(run: Run, stage: Stage, on_batch: Callable[[int], None]) -> Model:
    """Fit the classifier of a stage's model to its features; returns the model in eval mode.

    The features are of `epochs` augmented views of each training tile, as a training would show
    them. `on_batch` is called with the number of views whose features were computed.
    """
    model = timm_model(stage.module).to(run.context.device).eval()
    views = [
        _features_of_view(run, stage, model, i, on_batch) for i in range(stage.schedule.epochs)
    ]
    features = np.concatenate(views)
    probe = run_on_main(lambda: _fit(run, stage.name, features))
    classifier: nn.Linear = model.get_classifier()
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(probe.weight))
        classifier.bias.copy_(torch.from_numpy(probe.bias))
    return model


@torch.no_grad()
def _features_of_view(
    run: Run, stage: Stage, model: Model, view: int, on_batch: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """What the classifier is given for one view of each training tile: (N, D)."""
    context, train = run.context, run.tiles.subsets["train"]
    size = global_batch_size(stage.schedule, len(train), context)
    batches = -(-len(train) // size)
    padded = np.resize(train, batches * size)  # whole batches have the same views in all processes
    share, rows = (context.rank, context.world_size), []
    for number, whole in enumerate(np.split(padded, batches)):
        seed = derive_seed(run.recipe.seed, stage.name, "view", view, number)
        tiles = run.tiles.store.batch(whole[context.rank :: context.world_size])
        generator = torch.Generator().manual_seed(seed)
        images = augment(tiles.to(context.device), stage.full_view, stage.augment, generator, share)
        with context.autocast():
            features = model.forward_features(normalise(images, model))
            features = model.forward_head(features, pre_logits=True)  # (B, D)
        rows.append(features.float().cpu().numpy())
        on_batch(size)
    gathered = context.gather_rows(np.concatenate(rows), len(padded))
    return gathered[: len(train)]


def soft_labels(run: Run) -> Tensor | None:
    """Logits float32 (N, classes) of all tiles of a run from tile features; None without those.

    A probe knows the labels of the tiles that it was fitted to, and would only repeat them. So the
    logits of a training tile are those of a probe that did not see its group ('cross-fitting': Dao
    et al., 'Knowledge Distillation as Semiparametric Inference', ICLR 2021), unless a class has too
    few groups. They are made once and kept in the run, which resumes without the file of features.
    """
    if not run.recipe.learns_from_features:
        return None
    return torch.from_numpy(run_on_main(lambda: _kept_soft_labels(run)))


def _kept_soft_labels(run: Run) -> npt.NDArray[np.float32]:
    path = run.folder.soft_labels_path
    if not path.is_file():
        source = Path(run.recipe.teacher.features)
        features = read_tile_features(source, [row.tile for row in run.split])
        if features_origin(source) not in run.folder.read_config().origins:
            raise EdgelungError(
                f"{source} is not the file of tile features that the run was started with; put "
                "that file back and use --resume, or start anew"
            )
        train = run.tiles.subsets["train"]
        probe = _fit(run, "teacher", features[train])
        logits = probe.logits(features)
        if probe.unseen_logits is None:
            logger.info(
                "teacher: the training groups could not be dealt so that every class is in two "
                "folds; the soft labels of the training tiles come from a probe that was fitted to "
                "them"
            )
        else:
            logits[train] = probe.unseen_logits
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(save({LOGITS: torch.from_numpy(logits)}))
    try:
        logits = load_file(path)[LOGITS].numpy()
    except Exception as error:  # the library has its own exception type
        raise EdgelungError(f"cannot read {path}: {one_line(error)}; remove it") from error
    if logits.shape != (len(run.split), len(run.classes)):
        raise EdgelungError(f"{path} is not of this run's tiles; remove it and use --resume")
    return logits


def _fit(run: Run, name: str, features: npt.NDArray[np.float32]) -> LinearProbe:
    """Fit a probe to features (views · N, D) of the training tiles.

    Raises EdgelungError if a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise EdgelungError(f"{name}: a feature of a tile is not finite; try --set precision=fp32")
    train = run.tiles.subsets["train"]
    views = len(features) // len(train)
    labels = np.tile(run.tiles.labels[train].numpy(), views)
    groups = [run.split[index].group for index in train] * views
    seed = derive_seed(run.recipe.seed, name, "folds")
    logger.info("%s: fit a probe to %d features of %d views", name, features.shape[1], len(labels))
    probe = fit_probe(features, labels, groups, len(run.classes), seed)
    loss = "" if probe.fold_loss is None else f", loss {probe.fold_loss:.4f} on unseen groups"
    logger.info("%s: penalty %.2g%s", name, probe.penalty, loss)
    return probe
