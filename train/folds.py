"""`edgelung train --folds`: cross-validation over whole groups.

The groups are dealt to K folds once. For each fold a run is trained without the tiles that it
tests; then the K tests are joined. So every tile is predicted once, by a model that saw no tile of
its group.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import structs

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunConfig, RunFolder, RunMetrics, SplitRow, split_counts
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder
from edgelung.train.distributed import DistributedContext, create_context, run_on_main
from edgelung.train.earlier_runs import check_earlier_runs
from edgelung.train.fold_results import write_results
from edgelung.train.index import IndexedTile
from edgelung.train.prepare import (
    check_input,
    decode_tiles,
    index_again,
    join_split,
    name_groups,
    open_run,
    read_begun,
    run_config,
)
from edgelung.train.recipe import Recipe, validate_recipe
from edgelung.train.run import finish_run, training_lock
from edgelung.train.split import (
    SplitTile,
    deal_groups,
    shares_of_fold,
    split_fold,
    split_warnings,
)
from edgelung.train.stages import absolute_weights
from edgelung.train.tiles import DecodedTiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Deal:
    """The groups dealt to folds: group and fold of each tile, and the split of each fold."""

    groups: list[str]
    fold_of: list[int]
    splits: list[list[SplitTile]]


def train_folds(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    folds: int,
    groups: Path | None = None,
    follow_links: bool = False,
    tile_um: float | None = None,
    mpp: float | None = None,
) -> RunMetrics:
    """Cross-validate a recipe on a folder of labelled tiles; returns metrics.json of the whole.

    Arguments as of `edgelung.train.run.train_run`; `folds` is at least `split.MIN_FOLDS`. Raises
    EdgelungError for anything that the user can correct.
    """
    if recipe.split.by != "group":
        raise EdgelungError(
            f"the recipe splits by {recipe.split.by}, and --folds tests whole groups; expected "
            "--split group, or leave --folds out"
        )
    recipe = absolute_weights(recipe)
    found = check_input(data, out, recipe, follow_links=follow_links, tile_um=tile_um, mpp=mpp)
    tiles, context = found.tiles, found.context
    deal = run_on_main(lambda: _deal(data, tiles, recipe, folds, groups))
    if context.is_main:
        whole = [
            SplitTile(tile, group, "test") for tile, group in zip(tiles, deal.groups, strict=True)
        ]
        config = structs.replace(
            run_config(data, recipe, context, whole, groups),
            split=f"group, {folds} folds",
            folds=folds,
            follow_links=follow_links,
            tile_um=found.side,
        )
        with atomic_folder(out) as folder:
            _write(FoldsFolder(folder), config, deal, whole)
    return _train(data, FoldsFolder(out), tiles, context)


def resume_folds(data: Path, out: Path) -> RunMetrics:
    """Continue a cross-validation: finished folds are kept, the others are trained to their end."""
    folder = FoldsFolder(out)
    if folder.is_finished:
        logger.info("%s is already finished", out)
        return folder.read_metrics()
    config, tiles = run_on_main(lambda: _read_unfinished(data, folder))
    return _train(data, folder, tiles, create_context(config.precision))


def _deal(
    data: Path, tiles: Sequence[IndexedTile], recipe: Recipe, folds: int, groups: Path | None
) -> _Deal:
    """Find the groups, deal them to folds, and split each fold."""
    names = name_groups(data, tiles, groups)
    fold_of = deal_groups(tiles, names, folds, recipe.split.seed)
    shares = shares_of_fold(recipe.split, folds)
    splits = [split_fold(tiles, names, fold_of, fold + 1, shares) for fold in range(folds)]
    for split in splits:
        check_earlier_runs(recipe, split)
    for fold, split in enumerate(splits, 1):
        tested = [row for row in split if row.subset == "test"]
        counts = Counter(row.tile.label for row in tested)
        parts = ", ".join(f"{label} {counts[label]}" for label in sorted(counts))
        logger.info(
            "fold %d tests %d groups, tiles: %s", fold, len({row.group for row in tested}), parts
        )
    warnings = [
        line
        for split in splits
        for line in split_warnings(split, shares, groups_are_given=groups is not None)
    ]
    for line in dict.fromkeys(warnings):  # most are the same for all folds
        logger.info("%s", line)
    return _Deal(names, fold_of, splits)


def _write(folder: FoldsFolder, config: RunConfig, deal: _Deal, whole: Sequence[SplitTile]) -> None:
    """Write the folder with all its folds as runs that have not begun."""
    folder.write_split(row.row for row in whole)
    folder.write_folds((row.tile.path, fold) for row, fold in zip(whole, deal.fold_of, strict=True))
    folder.write_config(config)
    recipe = validate_recipe(config.recipe, folder.config_path.name)
    shares = shares_of_fold(recipe.split, config.folds)
    recipe_of_fold = recipe.model_copy(update={"split": shares}).model_dump(mode="json")
    for number, split in enumerate(deal.splits, 1):
        run = folder.fold(number)
        run.path.mkdir()
        run.write_split(row.row for row in split)
        run.write_config(
            structs.replace(
                config,
                split=f"group, fold {number} of {config.folds}",
                folds=0,
                counts=split_counts([row.row for row in split]),
                recipe=recipe_of_fold,
            )
        )


def _read_unfinished(data: Path, folder: FoldsFolder) -> tuple[RunConfig, list[IndexedTile]]:
    """run.json and the tiles of an unfinished cross-validation; they must not have changed."""
    config, rows = read_begun(folder)
    recipe = validate_recipe(config.recipe, str(folder.config_path))
    return config, index_again(data, config, recipe, rows)


def _read_fold(run: RunFolder) -> tuple[Recipe, list[SplitRow]] | None:
    """The recipe and the split of a fold; None if it is finished."""
    if run.is_finished:
        return None
    config, rows = read_begun(run)
    return validate_recipe(config.recipe, str(run.config_path)), rows


def _train(
    data: Path, folder: FoldsFolder, tiles: Sequence[IndexedTile], context: DistributedContext
) -> RunMetrics:
    """Train the folds that are not finished, then join their tests."""
    decoded: DecodedTiles | None = None  # all folds have the same tiles: they are decoded once
    with training_lock(folder, is_main=context.is_main):
        runs = run_on_main(folder.fold_runs)
        for number, run in enumerate(runs, 1):
            begun = run_on_main(partial(_read_fold, run))
            if begun is None:
                logger.info("fold %d of %d is already finished", number, len(runs))
                continue
            recipe, rows = begun
            decoded = decoded or decode_tiles(data, tiles, recipe)
            logger.info("fold %d of %d", number, len(runs))
            finish_run(open_run(run.path, recipe, context, join_split(tiles, rows), decoded))
        run_on_main(lambda: write_results(data, folder))
    return folder.read_metrics()
