"""Prepare a run: index the tiles, group and split them, create the run folder, decode the tiles."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from torch import nn

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.run import SUBSETS, RunConfig, RunFolder, SplitRow, split_counts
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, new_folder
from edgelung.core.terminal import progress as progress_bar
from edgelung.tiles.physical_size import stated_side
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.distributed import (
    DistributedContext,
    create_context,
    run_main_first,
    run_on_main,
)
from edgelung.train.earlier_runs import check_earlier_runs
from edgelung.train.groups.near_copies import find_groups, group_names
from edgelung.train.index import IndexedTile, index_tiles, read_groups
from edgelung.train.origins import origins
from edgelung.train.recipe import Recipe, validate_recipe
from edgelung.train.split import (
    SplitTile,
    count_leaked_tiles,
    join_duplicates,
    split_at_random,
    split_by_group,
    split_warnings,
)
from edgelung.train.stages import create_checked_modules
from edgelung.train.tile_features import check_memory, read_tile_features
from edgelung.train.tiles import DecodedTiles, LabelledTiles, TileStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run in progress: its folder, settings and tiles."""

    folder: RunFolder
    recipe: Recipe
    context: DistributedContext
    split: Sequence[SplitTile]
    classes: list[str]
    tiles: LabelledTiles  # in the order of `split`


@dataclass(frozen=True)
class CheckedInput:
    """What was found before the grouping: the tiles, the device, the models with first weights.

    `side`: side of a tile in micrometres, if somebody stated it.
    """

    tiles: list[IndexedTile]
    context: DistributedContext
    side: float | None
    modules: dict[str, nn.Module]


def start_run(
    data: Path,
    out: Path,
    recipe: Recipe,
    groups: Path | None,
    *,
    follow_links: bool = False,
    tile_um: float | None = None,
    mpp: float | None = None,
) -> tuple[Run, dict[str, nn.Module]]:
    """Check everything that can be checked, then create the run folder.

    `tile_um`, `mpp`: see `edgelung.tiles.physical_size.stated_side`. Returns the run and the
    modules to train, by role.
    """
    found = check_input(data, out, recipe, follow_links=follow_links, tile_um=tile_um, mpp=mpp)
    context = found.context
    split = run_on_main(lambda: _split(data, found.tiles, recipe, groups))
    run_on_main(lambda: check_earlier_runs(recipe, split))
    for line in split_warnings(split, recipe.split, groups_are_given=groups is not None):
        logger.info("%s", line)
    run = open_run(out, recipe, context, split, decode_tiles(data, found.tiles, recipe))
    if context.is_main:
        with atomic_folder(out) as folder:
            RunFolder(folder).write_split(tile.row for tile in split)
            config = run_config(data, recipe, context, split, groups)
            config = structs.replace(config, tile_um=found.side, follow_links=follow_links)
            RunFolder(folder).write_config(config)
    return run, found.modules


def check_input(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    follow_links: bool,
    tile_um: float | None,
    mpp: float | None,
) -> CheckedInput:
    """Check folders, tiles and models: all that can be wrong before the long work."""
    context = create_context(recipe.precision)
    tiles = run_on_main(lambda: _index_new_run(data, out, recipe, follow_links))
    if recipe.learns_from_features:
        run_on_main(lambda: _check_features(recipe, tiles))
    side = stated_side(_sizes(tiles), tile_um=tile_um, mpp=mpp)
    classes = len({tile.label for tile in tiles})
    # Before the grouping, which takes minutes.
    modules = run_main_first(lambda: create_checked_modules(recipe, classes))
    return CheckedInput(tiles, context, side, modules)


def resume_run(data: Path, out: Path) -> Run:
    """Open an unfinished run with its own tiles and precision."""
    config, split = run_on_main(lambda: _read_unfinished(data, out))
    recipe = validate_recipe(config.recipe, str(RunFolder(out).config_path))
    context = create_context(config.precision)
    decoded = decode_tiles(data, [row.tile for row in split], recipe)
    return open_run(out, recipe, context, split, decoded)


def _index_new_run(data: Path, out: Path, recipe: Recipe, follow_links: bool) -> list[IndexedTile]:
    new_folder(out, "run", "choose another name, or go on with it with --resume")
    with progress_bar("index") as advance:
        return index_tiles(data, recipe.classes, advance, follow_links=follow_links)


def _check_features(recipe: Recipe, tiles: Sequence[IndexedTile]) -> None:
    check_memory(Path(recipe.teacher.features), tiles)
    features = read_tile_features(Path(recipe.teacher.features), tiles)
    logger.info("%d features of each tile in %s", features.shape[1], recipe.teacher.features)
    names = {member.name for member in recipe.teacher.members}
    guiding = {member.name for member in recipe.teachers.values()}
    if left := sorted(names - guiding):
        logger.info("not trained, since the features give the soft labels: %s", ", ".join(left))


def _split(
    data: Path, tiles: Sequence[IndexedTile], recipe: Recipe, groups: Path | None
) -> list[SplitTile]:
    """Assign every tile its group and its subset."""
    names = name_groups(data, tiles, groups)
    assign = split_at_random if recipe.split.by == "random" else split_by_group
    split = assign(tiles, names, recipe.split)
    for subset, labels in split_counts([tile.row for tile in split]).items():
        parts = ", ".join(f"{n} {c.tiles} ({c.groups})" for n, c in labels.items())
        logger.info("%-5s tiles (groups): %s", subset, parts)
    return split


def name_groups(data: Path, tiles: Sequence[IndexedTile], groups: Path | None) -> list[str]:
    """The group of each tile: read from a CSV, or found by what the tiles show."""
    if groups:
        names = read_groups(groups, tiles)
    else:
        grouping = find_groups(data, tiles)
        names = group_names(tiles, grouping)
        if grouping.plain:
            logger.info(
                "%d tile(s) too plain to compare, each a group of its own", len(grouping.plain)
            )
    return join_duplicates(tiles, names)


def run_config(
    data: Path,
    recipe: Recipe,
    context: DistributedContext,
    split: Sequence[SplitTile],
    groups: Path | None,
) -> RunConfig:
    """run.json of a new run."""
    sizes = _sizes([row.tile for row in split])
    return RunConfig(
        edgelung=__version__,
        notice=RESEARCH_USE_ONLY,
        data=str(data.absolute()),
        seed=recipe.seed,
        precision=context.precision,
        processes=context.world_size,
        groups=groups.name if groups else "auto: tiles that show one piece of tissue",
        split=recipe.split.by,
        test_tiles_with_a_group_mate_in_training=count_leaked_tiles(split),
        counts=split_counts([tile.row for tile in split]),
        sizes=dict(sizes.most_common(10)),
        recipe=recipe.model_dump(mode="json"),
        origins=origins(recipe),
    )


def _sizes(tiles: Sequence[IndexedTile]) -> Counter[str]:
    """Number of tiles by '<width>x<height>' in pixels."""
    return Counter(f"{tile.width}x{tile.height}" for tile in tiles)


def _read_unfinished(data: Path, out: Path) -> tuple[RunConfig, list[SplitTile]]:
    """run.json and the split of an unfinished run; its tiles must not have changed."""
    folder = RunFolder(out)
    config, rows = read_begun(folder)
    if config.folds:
        raise EdgelungError(f"{out} is a cross-validation; continue it with `resume_folds`")
    recipe = validate_recipe(config.recipe, str(folder.config_path))
    return config, join_split(index_again(data, config, recipe, rows), rows)


def read_begun(folder: RunFolder) -> tuple[RunConfig, list[SplitRow]]:
    """run.json and split.csv of a run that was begun; both must be as they were written."""
    out = folder.path
    if not folder.config_path.is_file():
        raise EdgelungError(f"{out} holds no unfinished run; start one without --resume")
    config = folder.read_config()
    if config.schema_version < 2:
        raise EdgelungError(
            f"{out} was begun by edgelung {config.edgelung}, whose checkpoints this version cannot "
            "continue; finish it with that version, or start anew without --resume"
        )
    folder.check_split(config)
    return config, folder.read_split()


def index_again(
    data: Path, config: RunConfig, recipe: Recipe, rows: Sequence[SplitRow]
) -> list[IndexedTile]:
    """The tiles of a run that was begun; raises EdgelungError if any of them has changed."""
    hashes = {row.path: row.sha256 for row in rows}
    tiles = index_tiles(data, recipe.classes, follow_links=config.follow_links)
    changed = [t.path for t in tiles if hashes.get(t.path) != t.sha256]
    if changed or len(tiles) != len(rows):
        what = changed[0] if changed else f"{len(rows) - len(tiles)} tiles are gone"
        raise EdgelungError(
            f"the tiles in {data} are not those that the run was split on ({what}); "
            "restore them or start anew"
        )
    return tiles


def join_split(tiles: Sequence[IndexedTile], rows: Sequence[SplitRow]) -> list[SplitTile]:
    """The tiles with the groups and subsets of a split.csv, in the order of `tiles`."""
    of_path = {row.path: row for row in rows}
    return [SplitTile(t, of_path[t.path].group, of_path[t.path].subset) for t in tiles]


def decode_tiles(data: Path, tiles: Sequence[IndexedTile], recipe: Recipe) -> DecodedTiles:
    """Decode tiles at the largest input of the recipe's models, and at that of the student.

    Tiles are not enlarged beyond the largest of them, and never smaller than the student's input.
    """
    student = recipe.student.size
    largest = max(max(tile.width, tile.height) for tile in tiles)
    inputs = max(recipe.schedule(role).size for role in recipe.roles)
    paths = [data / tile.path for tile in tiles]
    # The largest first: every step reads it, so it should be the one that fits into memory.
    sizes = sorted({student, max(student, min(inputs, largest))}, reverse=True)
    stores = []
    for size in sizes:
        with progress_bar("decode", len(paths)) as advance:
            stores.append(TileStore(paths, ReaderSpec(size=size), advance))
        if not stores[-1].in_memory:
            logger.info("the decoded tiles do not fit into memory; each batch is decoded anew")
    return DecodedTiles(*stores)


def open_run(
    out: Path,
    recipe: Recipe,
    context: DistributedContext,
    split: Sequence[SplitTile],
    decoded: DecodedTiles,
) -> Run:
    """A run of decoded tiles, which are in the order of `split`."""
    classes = sorted({row.tile.label for row in split})
    labels = torch.tensor([classes.index(row.tile.label) for row in split])
    subsets = {
        name: np.array([i for i, row in enumerate(split) if row.subset == name], np.int64)
        for name in SUBSETS
    }
    if context.device.type == "cuda":
        decoded.store.copy_to(context.device)
    return Run(
        RunFolder(out), recipe, context, split, classes, LabelledTiles(decoded, labels, subsets)
    )
