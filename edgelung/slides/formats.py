"""Tables of the tiles that `edgelung slide` writes, and their file names."""

from enum import StrEnum


class TableFormat(StrEnum):
    """The table of the tiles."""

    PARQUET = "parquet"
    CSV = "csv"
    WSINFER = "wsinfer"


TABLES = {
    TableFormat.PARQUET: "tiles.parquet",
    TableFormat.CSV: "tiles.csv",
    TableFormat.WSINFER: "tiles.wsinfer.csv",
}
