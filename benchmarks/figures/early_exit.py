"""The tables of the early exit: tokens and blocks, thresholds, what it is worth, foreign tissue."""

from figures.table import Table, percent, points, result

TRIALS, RESULT = "early-exit-trials.json", "early-exit.json"


def tokens() -> Table:
    """Share of tiles that continue, by block and tokens."""
    content = result(TRIALS)
    rows = [
        [
            str(row["block"]),
            row["tokens"],
            percent(row["same_label_without_threshold"]),
            *(percent(share, 0) for share in row["continue_at_agreement"].values()),
        ]
        for row in content["tokens"]
    ]
    header = ["after block", "from", "same label if all left"]
    header += [f"continue, {percent(float(a))} same" for a in ("0.995", "0.998", "0.999")]
    return Table(header, rows, {TRIALS: content})


def thresholds() -> Table:
    """The bound on labels alone and with the bound on groups, by the share of known tiles."""
    content = result(TRIALS)
    names = {"labels_alone": "labels", "labels_and_groups": "labels and groups"}
    rows = [
        [
            percent(row["known"], 0),
            name,
            f"{row[key]['confidence']:.3f}",
            percent(row[key]["continue"], 0),
            percent(row[key]["agreement"], 2),
            points(-row[key]["balanced_accuracy_lost"], 2),
            f"{row[key]['groups']['lost']} of {row[key]['groups']['groups']}",
            f"{row[key]['unknown_that_left']} of {row[key]['unknown']}",
            f"{row[key]['foreign_that_left']} of {row['foreign_tiles']}",
        ]
        for row in content["thresholds"]
        for key, name in names.items()
    ]
    header = ["known", "bounds", "confidence", "continue", "same label", "balanced, points"]
    header += ["groups lost", "unknown that left", "colon that left"]
    return Table(header, rows, {TRIALS: content})


def worth() -> Table:
    """The cascade against full precision, by engine and set."""
    content = result(RESULT)
    rows = [
        [
            {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}[engine],
            name,
            f"{row['tiles']:,}",
            percent(row["left_of_tiles"], 0),
            percent(row["agreement"], 2),
            points(row["balanced_accuracy"] - row["balanced_accuracy_fp32"], 2),
            f"{row['groups']['lost']} of {row['groups']['groups']}",
            percent(row["groups"]["bound"]),
            row["gate"]["verdict"],
        ]
        for engine in ("openvino", "onnxruntime")
        for name, row in content[engine].items()
    ]
    header = ["engine", "tiles of", "tiles", "left early", "same label as fp32"]
    header += ["balanced, points", "groups lost", "of all sources at most", "labels at the gate"]
    return Table(header, rows, {RESULT: content})


def speed() -> Table:
    """CPU time of INT8 and the cascade on one core."""
    content = result(RESULT)
    found = content["speed"]
    middle = {n: sorted(v)[len(v) // 2] for n, v in found["cpu_ms_per_tile"].items()}
    rows = [
        [
            {"int8": "`int8`", "cascade": "`int8-early-exit`"}[name],
            f"{middle[name]:.2f}",
            *(f"{found['single_tile_cpu_ms'][name][p]:.1f}" for p in ("p50", "p90", "p99")),
        ]
        for name in ("int8", "cascade")
    ]
    low, high = found["ratio_range"]
    note = f"{found['ratio']:.2f} × as many tiles ({low:.2f} – {high:.2f} in paired runs)."
    header = ["variant", "CPU ms per tile, batches of 16", "one tile, p50", "p90", "p99"]
    return Table(header, rows, {RESULT: content}, note)


def foreign() -> Table:
    """What is told of tiles that the model was not made for."""
    content = result(RESULT)
    rows = [
        [
            name,
            *(str(row[key]) for key in ("tiles", "left_early", "unknown", "unknown_int8")),
        ]
        for name, row in content["foreign"].items()
    ]
    header = ["tiles", "number", "left early", "unknown", "unknown in `int8`"]
    return Table(header, rows, {RESULT: content})


TABLES = {
    "early-exit-tokens": tokens,
    "early-exit-thresholds": thresholds,
    "early-exit": worth,
    "early-exit-speed": speed,
    "early-exit-foreign": foreign,
}
