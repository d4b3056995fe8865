"""The tables of slides: thresholds for tissue, and speed."""

from dataclasses import replace

from figures.table import Table, percent, result


def tissue() -> Table:
    """Share of real tiles and of glass that a threshold keeps."""
    content = result("tissue.json")
    kept = content["kept"]
    thresholds = list(next(iter(kept.values())))
    rows = [
        [
            threshold,
            *(percent(kept["lung_n"][threshold][share], 2) for share in ("0.25", "0.5")),
            percent(min(kept[name][threshold]["0.5"] for name in ("lung_aca", "lung_scc")), 2),
            *(percent(kept[name][threshold]["0.25"], 0) for name in ("glass", "glass, made white")),
        ]
        for threshold in thresholds
    ]
    header = ["saturation above", "normal lung, a quarter", "normal lung, half", "tumours, half"]
    header += ["glass", "glass made white"]
    return Table(header, rows, {"tissue.json": content})


def slides() -> Table:
    """Slides by edgelung and by other programs, on one core."""
    return _with_shares("slides.json")


def early_exit() -> Table:
    """Slides of lung alone by edgelung without and with the early exit, on one core."""
    return _with_shares("slides-lung.json")


def _with_shares(file: str) -> Table:
    """The programs, and above them what left early and what reading took."""
    table = _programs(file)
    cases = table.sources[file]["results"]
    left = [
        f"{percent(case['left_early'], 0)} of the {case['tiles']:,} tiles of {name}"
        for name, case in cases.items()
    ]
    read = [f"{percent(case['reading_share'])} ({name})" for name, case in cases.items()]
    note = f"Left early: {', '.join(left)}. Reading took of the time of INT8: {', '.join(read)}."
    return replace(table, note=note)


def _programs(file: str) -> Table:
    """Each program on each slide."""
    content = result(file)
    names = {
        "edgelung": "**edgelung**",
        "edgelung early exit": "**edgelung, early exit**",
        "wsinfer openslide": "WSInfer, OpenSlide",
        "wsinfer tiffslide": "WSInfer, tiffslide",
        "tiatoolbox": "TIAToolbox",
    }
    rows = [
        [
            f"{case['tiles']:,} × {name}",
            names[program],
            f"{row['seconds']:.1f} ({row['least']:.1f} … {row['most']:.1f})",
            f"{row['tiles_per_second']:.0f}",
            f"{row['times_edgelung']:.2f} ×",
            f"{row['megabytes']}",
        ]
        for name, case in content["results"].items()
        for program, row in case["programs"].items()
    ]
    header = ["tiles", "program", "seconds, start included", "tiles/s", "time", "MB at most"]
    return Table(header, rows, {file: content})


TABLES = {"tissue": tissue, "slides": slides, "slides-lung": early_exit}
