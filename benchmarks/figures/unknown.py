"""The tables of unknown tissue: scores compared, variants, made pictures, changed colours."""

from figures.table import NONE, Table, interval, percent, points, result

FILE = "unknown.json"
# Shown of all scores: the simple ones, the best of each kind, and how the layers differ.
SHOWN = (
    "1 - maximum softmax",
    "energy",
    "ViM, class tokens",
    "10 nearest neighbours, patches, block 8",
    "10 nearest neighbours, patches, block 10",
    "Mahalanobis, class tokens, block 8",
    "Mahalanobis, class tokens, block 11",
    "relative Mahalanobis, patches, block 8",
    "Mahalanobis, patches, block 4",
    "Mahalanobis, patches, block 6",
    "Mahalanobis, patches, block 8",
    "Mahalanobis, patches, block 10",
    "Mahalanobis, patches, block 11",
)
CHOSEN = "Mahalanobis, patches, block 8"


def scores() -> Table:
    """How well each score tells a class that was left out, and colon."""
    content = result(FILE)
    found, areas = content["foreign"]["scores"], content["left-out"]
    rows = []
    for name in SHOWN:
        one, area = found[name], areas[name]
        cells = [
            name,
            *(f"{area[left]:.3f}" for left in ("lung_aca", "lung_n", "lung_scc", "mean")),
            f"{one['auroc_control']:.3f}",
            " of ".join(map(str, one["colon_told"])),
            " of ".join(map(str, one["control_told"])),
        ]
        rows.append([f"**{cell}**" for cell in cells] if name == CHOSEN else cells)
    header = ["score", "without lung_aca", "without lung_n", "without lung_scc", "mean"]
    header += ["colon against lung, 768 px", "colon unknown", "lung unknown"]
    return Table(header, rows, {FILE: content})


def variants() -> Table:
    """The score of the starter's variants in OpenVINO."""
    content = result(FILE)
    found = content["foreign"]["variants"]
    rows = [
        [
            name,
            f"{one['limit']:.3f}",
            f"{one['auroc_control']:.4f}",
            " of ".join(map(str, one["colon_told"])),
            " of ".join(map(str, one["control_told"])),
            percent(one["test_told"], 2),
            interval(one["test_interval"]),
        ]
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    note = (
        f"The scores of the two rank the test tiles alike ({found['rank_correlation']:.4f}, "
        f"Spearman) and give the same verdict on {percent(found['same_verdict'], 2)} of them."
        if "rank_correlation" in found
        else ""
    )
    header = [
        "variant",
        "limit",
        "AUROC, colon against lung of 768 px",
        "colon unknown",
        "lung unknown",
    ]
    header += ["test tiles unknown", "95 % interval"]
    return Table(header, rows, {FILE: content}, note)


def made() -> Table:
    """Pictures that are no tissue."""
    content = result(FILE)
    rows = [
        [name, f"{one['told']} of {one['of']}", f"{one['blank']}"]
        for name, one in content["made"].items()
    ]
    return Table(["picture", "unknown", "of them by their pixels"], rows, {FILE: content})


def colour() -> Table:
    """The starter's test tiles in other colours."""
    content = result(FILE)
    rows = [
        [
            name,
            percent(one["unknown"]),
            percent(one["balanced_accuracy"]),
            NONE
            if one["balanced_accuracy_of_known"] is None
            else percent(one["balanced_accuracy_of_known"]),
        ]
        for name, one in content["colour"].items()
    ]
    header = ["change", "unknown", "balanced accuracy, all", "of the known tiles"]
    return Table(header, rows, {FILE: content})


def test_tiles() -> Table:
    """The starter's test tiles with and without those that are unknown."""
    content = result(FILE)
    one = content["test"]
    row = [
        f"{one['tiles']:,} in {one['groups']} groups",
        f"{one['unknown']}",
        f"{one['unknown_and_wrong']}",
        percent(one["balanced_accuracy"], 2),
        percent(one["balanced_accuracy_of_known"], 2),
        f"{points(one['change'], 2)} ({interval(one['change_interval'], points)})",
    ]
    header = ["test tiles", "unknown", "of these wrong", "balanced accuracy", "of the known tiles"]
    return Table([*header, "change, points (95 %)"], [row], {FILE: content})


TABLES = {
    "unknown-test": test_tiles,
    "unknown-scores": scores,
    "unknown-variants": variants,
    "unknown-made": made,
    "unknown-colour": colour,
}
