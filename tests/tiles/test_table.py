"""The decision table and the page that restates it."""

from collections.abc import Collection
from pathlib import Path

import pytest

from edgelung.tiles.errors import TileError
from edgelung.tiles.table import TABLE, TO_16, Kind, decide

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "images.md"


def words(values: Collection[object]) -> str:
    return "1–16" if values == TO_16 else ", ".join(map(str, values))


def test_the_page_restates_every_row() -> None:
    cells = [[row.compression, row.colour, row.bits, row.alpha, row.planes] for row in TABLE]
    expected = [
        " | ".join([f"| {row.container}", *map(words, fields), f"{row.decoder} |"])
        for row, fields in zip(TABLE, cells, strict=True)
    ]
    stated = [line for line in PAGE.read_text().splitlines() if line.count(" | ") == 6]
    assert stated[1:] == expected


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Kind("TIFF", "34712 (JPEG 2000)", "RGB", 8), "TIFF compression 34712 (JPEG 2000)"),
        (Kind("TIFF", "LZW", "RGB", 8, sample_format="signed integer"), "type signed integer"),
        (Kind("TIFF", "LZW", "CIE L*a*b*", 8), "colour CIE L*a*b*"),
        (Kind("TIFF", "LZW", "RGB", 32), "RGB of 32 bits"),
        (Kind("TIFF", "LZW", "RGB", 8, "unspecified"), "alpha unspecified"),
        (Kind("JPEG", "lossless Huffman", "grey", 8), "JPEG compression lossless Huffman"),
    ],
)
def test_a_refusal_names_the_field_that_no_row_allows(kind: Kind, reason: str) -> None:
    with pytest.raises(TileError) as caught:
        decide(kind)
    assert caught.value.status == "unsupported"
    assert reason in caught.value.reason
