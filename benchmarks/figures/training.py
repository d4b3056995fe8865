"""The tables of training: speed, teachers, cheaper students."""

from statistics import median
from typing import Any

from figures.table import NONE, Table, difference, interval, percent, result

TRAIN, TEACHERS, CHEAPER = "train.json", "teachers.json", "cheaper.json"
STARTS, FIRST_FOLD = "student-starts.json", "student-starts-fold-1.json"
AVERAGE = "teacher-average.json"
UNTUNED = ", not tuned"
LOOPS = {
    "edgelung": "student: `edgelung train`",
    "edgelung" + UNTUNED: "the same without the settings for CPUs",
    "plain": "the plain loop",
    "timm's train.py": "timm's own script",
    "model alone": "models and optimizer alone, on views that are there",
    "teacher": "teacher: `edgelung train`",
    "teacher" + UNTUNED: "the same without the settings for CPUs",
}


def speed() -> Table:
    """Tiles per second of each training loop, in BF16."""
    return _speed(TRAIN)


def speed_fp32() -> Table:
    """Tiles per second of the student's loops on a CPU without BF16."""
    return _speed("train-fp32.json")


def _speed(name: str) -> Table:
    content = result(name)
    rates, memory = content["tiles_per_second"], content["largest_memory_mib"]
    rows = []
    for loop, text in LOOPS.items():
        if loop in rates:
            cells = [f"{form(rates[loop]):.1f}" for form in (median, min, max)]
            cells += [f"{memory[loop] / 1024:.1f} GiB" if loop in memory else NONE]
            rows.append([text, *cells])
    header = ["loop", "tiles/s, median", "slowest", "fastest", "largest memory"]
    return Table(header, rows, {name: content})


def teachers() -> Table:
    """Each teacher over all folds, paired with the one that was fine-tuned."""
    return _paired(TEACHERS, "teacher")


def starts() -> Table:
    """Students that start differently, or are larger, over three folds."""
    return _paired(STARTS, "student")


def average() -> Table:
    """Students of one teacher and of an average, over three folds."""
    table = _paired(AVERAGE, "student")
    rows = [[f"of the {row[0]}", *row[1:]] for row in table.rows]
    return Table(table.header, rows, table.sources)


def first_fold() -> Table:
    """More students, over the first fold alone."""
    table = _paired(FIRST_FOLD, "student")
    return Table(table.header[:-1], [row[:-1] for row in table.rows], table.sources)


def _paired(name: str, who: str) -> Table:
    """Models over all folds, paired with the first of them."""
    content = result(name)
    rows = [
        [
            model,
            percent(row["balanced_accuracy"]),
            interval(row["interval"]),
            difference(row) if "difference" in row else NONE,
            f"{100 * min(row['by_fold']):.1f} … {100 * max(row['by_fold']):.1f}",
        ]
        for model, row in content[f"{who}s"].items()
    ]
    header = [who, "balanced", "95 % interval", "difference in points", "folds"]
    return Table(header, rows, {name: content})


def cheaper() -> Table:
    """Accuracy and speed of each student and variant."""
    content = result(CHEAPER)
    speeds = {(row["model"], row["variant"]): row for row in content["speed"]}
    rows = [_cheaper_row(row, speeds) for row in content["accuracy"]]
    header = ["student", "variant", "balanced", "points to the first", "same label as own FP32"]
    header += ["leave", "tiles/s of CPU", "× INT8 of the first"]
    return Table(header, rows, {CHEAPER: content})


def _cheaper_row(row: dict[str, Any], speeds: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    speed = speeds.get((row["model"], row["variant"]))
    points = f"{row['points_to_reference']:+.1f}".replace("-", "−")
    left = row["left_early"]
    cells = [row["model"], row["variant"], percent(row["balanced_accuracy"])]
    cells += [
        f"{points} ({interval(row['interval'], lambda value: f'{value:+.1f}'.replace('-', '−'))})"
    ]
    cells += [percent(row["same_label_as_own_fp32"], 2), NONE if left is None else percent(left, 0)]
    if speed is None:
        return [*cells, NONE, NONE]
    return [
        *cells,
        f"{speed['tiles_per_cpu_second']:.0f}",
        f"{speed['times_int8_of_the_first']:.2f}",
    ]


TABLES = {"train-speed": speed, "train-speed-fp32": speed_fp32, "teachers": teachers}
TABLES["cheaper"] = cheaper
TABLES |= {"student-starts": starts, "student-starts-first": first_fold}
TABLES |= {"teacher-average": average}
