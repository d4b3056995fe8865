"""The tables of the cross-validation: figures, classes, groups, prediction sets."""

from figures.table import Table, interval, percent, result

FILE = "folds-quick.json"
SHOWN_GROUPS = 12
ROLES = ("teacher", "student")


def figures() -> Table:
    """Teacher and student in each fold and over all."""
    content = result(FILE)
    metrics = content["metrics"]
    rows = []
    for index, minutes in enumerate(content["minutes_of_each_fold"]):
        parts = [metrics["folds"][role][index] for role in ROLES]
        cells = [percent(part["balanced_accuracy"]) for part in parts]
        rows.append([f"fold {parts[0]['fold']}", str(parts[0]["groups"]), str(parts[0]["tiles"])])
        rows[-1] += [*cells, f"{minutes:.0f}"]
    tests = [metrics[role]["test"] for role in ROLES]
    cells = [
        f"{percent(test['balanced_accuracy'])} ({interval(test['intervals']['balanced_accuracy'])})"
        for test in tests
    ]
    total = sum(content["minutes_of_each_fold"])
    rows.append(["all", str(tests[0]["groups"]), str(tests[0]["tiles"]), *cells, f"{total:.0f}"])
    header = ["tested in", "groups", "tiles", "teacher, balanced", "student, balanced", "minutes"]
    return Table(header, rows, {FILE: content})


def classes() -> Table:
    """What the student predicts for the tiles of each class, over all folds."""
    content = result(FILE)
    test, names = content["metrics"]["student"]["test"], content["metrics"]["classes"]
    rows = [
        [name, percent(test["recall"][index]), percent(test["precision"][index])]
        + [str(count) for count in test["confusion"][index]]
        for index, name in enumerate(names)
    ]
    header = ["true class", "recall", "precision", *(f"predicted {name}" for name in names)]
    return Table(header, rows, {FILE: content})


def groups() -> Table:
    """The groups with the most errors."""
    content = result(FILE)
    rows = [
        [row["group"], row["class"], str(row["tiles"]), str(row["wrong"])]
        for row in content["groups"][:SHOWN_GROUPS]
    ]
    wrong = sum(row["wrong"] for row in content["groups"])
    shown = sum(row["wrong"] for row in content["groups"][:SHOWN_GROUPS])
    note = (
        f"{len(content['groups'])} of {content['data']['groups']} groups hold all {wrong} errors; "
        f"the {SHOWN_GROUPS} groups below hold {shown} of them."
    )
    return Table(["group", "class", "tiles", "wrong"], rows, {FILE: content}, note)


def sets() -> Table:
    """Coverage and size of the prediction sets."""
    content = result(FILE)
    rows = [
        [
            f"{100 * float(name):g} %",
            percent(found["coverage"]["share"], 2),
            interval(found["coverage"]["interval"]),
            f"{100 * min(found['by_fold']):.1f} … {100 * max(found['by_fold']):.1f}",
            f"{found['mean_size']:.3f}",
            *(percent(found["share_of_sizes"].get(size, 0.0)) for size in ("1", "2", "3")),
        ]
        for name, found in content["prediction_sets"].items()
    ]
    header = ["asked for", "covered", "95 % interval", "lowest … highest fold", "classes, mean"]
    return Table([*header, "one class", "two", "three"], rows, {FILE: content})


TABLES = {
    "folds-figures": figures,
    "folds-classes": classes,
    "folds-groups": groups,
    "folds-sets": sets,
}
