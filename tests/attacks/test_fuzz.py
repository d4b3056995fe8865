"""The reader under random damage: a tile of the right form or a status, nothing else."""

import numpy as np
import pytest
from samples import samples

from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SPEC = ReaderSpec(size=64)
WHOLE = list(samples().values())
STATUSES = {"unsupported", "several-pages", "slide", "corrupt", "truncated", "too-large"}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A whole file with bytes changed, taken out, put in from another file, or cut off."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    # Most harm is done near the start, where the headers are.
    place = st.integers(0, len(data) - 1) | st.integers(0, min(len(data) - 1, 300))
    for _ in range(draw(st.integers(0, 6))):
        at, kind = draw(place), draw(st.sampled_from(("set", "set", "drop", "insert", "big")))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "big":
            data[at : at + 4] = draw(st.sampled_from((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff")))
        else:
            other = draw(st.sampled_from(WHOLE))
            start = draw(st.integers(0, len(other) - 1))
            data[at:at] = other[start : start + draw(st.integers(1, 400))]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def check(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, TileError):
        assert found.status in STATUSES
        assert found.reason
        assert "\n" not in found.reason
    else:
        assert found.shape == (64, 64, 3)
        assert found.dtype == np.uint8


def outcome(data: bytes) -> np.ndarray | TileError:
    try:
        return decode_tile(data, SPEC)
    except TileError as error:
        return error


everything = hypothesis.settings(
    deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


@hypothesis.settings(everything, max_examples=200)
@hypothesis.given(damaged() | st.binary(max_size=200))
def test_damage_is_a_status_or_a_tile(data: bytes) -> None:
    check(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@hypothesis.settings(everything, max_examples=50_000)
@hypothesis.given(damaged())
def test_damage_is_a_status_or_a_tile_for_long(data: bytes) -> None:
    check(data)
