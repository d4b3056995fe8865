"""The table of the thresholds for tissue."""

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


TABLES = {"tissue": tissue}
