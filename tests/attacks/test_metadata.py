"""Small images whose metadata asks for far more memory or work than their files are long."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from encoders import chunk, page, png, tiff
from PIL import Image

from edgelung.tiles.jpeg2000 import jpeg2000_memory
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile
from edgelung.tiles.tiff_directory import Directory

SPEC = ReaderSpec(size=8)
GREY = np.full((8, 8, 1), 128, np.uint8)
RGB = np.full((8, 8, 3), 128, np.uint8)


def described(text: bytes, pages: int = 1, **tags: object) -> bytes:
    first = page(GREY, 8, 1, tags={270: text + b"\0"} | {int(k[1:]): v for k, v in tags.items()})
    return tiff(first, *[page(GREY, 8, 1)] * (pages - 1))


def shared_sub_directories() -> bytes:
    """64 pages that each refer to the same 256 directories of 64 entries."""
    entry = struct.pack("<HHII", 330, 4, 256, 8 + 64 * 18)
    chain = b"".join(
        struct.pack("<H", 1) + entry + struct.pack("<I", 8 + 18 * (i + 1) if i < 63 else 0)
        for i in range(64)
    )
    start = 8 + len(chain) + 4 * 256
    one = struct.pack("<H", 64) + b"".join(struct.pack("<HHII", t, 1, 0, 0) for t in range(64))
    one += bytes(4)
    offsets = struct.pack("<256I", *(start + i * len(one) for i in range(256)))
    return b"II*\0" + struct.pack("<I", 8) + chain + offsets + one * 256


def test_shared_sub_directories_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    usual = Directory.__init__

    def counted(self: Directory, *given: object) -> None:
        read.append(given)
        usual(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Directory, "__init__", counted)
    with pytest.raises(TileError):
        decode_tile(shared_sub_directories(), SPEC)
    assert len(read) <= 64 + 256


def luts() -> bytes:
    block = b"IJIJ" + b"luts\xff\xff\xff\xff" * 1000
    text = b"ImageJ=1.53t\nimages=3\nchannels=3\nmode=composite"
    counts = [len(block)] + [0] * 1000
    return described(text, 3, t50838=counts, t50839=block)


def text_png() -> bytes:
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\n" * (16 * 2**20 - 100), 9)
    return png(RGB, 8, 2, before=chunk(b"zTXt", text))


def profile_png() -> bytes:
    profile = b"a\0\0" + zlib.compress(bytes(15 * 2**20), 9)
    return png(RGB, 8, 2, before=chunk(b"iCCP", profile))


METADATA: dict[str, Callable[[], bytes]] = {
    "values": lambda: tiff(page(GREY, 8, 1, tags={281: b"\xff" * 10**6})).replace(
        struct.pack("<HHI", 281, 7, 10**6), struct.pack("<HHI", 281, 1, 10**6)
    ),
    "lookup tables": luts,
    "text": text_png,
    "profile": profile_png,
    "XML": lambda: described(b"<OME>" + b"<a/>" * 300_000 + b"</OME>"),
    "shape": lambda: described(b'{"shape": [' + b"[]," * 300_000 + b"[]]}"),
    "lines": lambda: described(b"ImageJ=1\n" + b"=\n" * 500_000),
    "chunks": lambda: png(RGB, 8, 2, before=chunk(b"abCd", b"") * 100_000),
    "JPEG segments": lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 100_000,
    "EXIF": lambda: b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 60,
    "WebP chunks": lambda: (
        b"RIFF" + struct.pack("<I", 4 + 800_000) + b"WEBP"
        + b"".join(struct.pack("<II", i, 0) for i in range(100_000))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_metadata_takes_few_mebibytes_beside_the_file(name: str) -> None:
    data = METADATA[name]()
    tracemalloc.start()
    try:
        decode_tile(data, SPEC)
    except TileError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 6 * 2**20 + 2 * len(data)


@pytest.mark.parametrize(
    "text",
    [
        b"ImageJ=1\nchannels=0\nimages=5",
        b"ImageJ=1\nchannels=" + b"9" * 5000,
        b'{"shape": [1e400]}',
        b'{"shape": [' + b"9" * 5000 + b"]}",
    ],
)
def test_a_number_that_is_none_is_damage(text: bytes) -> None:
    with pytest.raises(TileError) as caught:
        decode_tile(described(text), SPEC)
    assert caught.value.status == "corrupt"


def test_chunks_and_segments_without_number_are_refused() -> None:
    """They are walked in Python: 512 MB of them would take minutes."""
    pixels = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    files = {}
    for kind, options in (("WEBP", {"lossless": True}), ("JPEG", {"progressive": True})):
        buffer = io.BytesIO()
        pixels.save(buffer, kind, **options)
        files[kind] = buffer.getvalue()
    body = files["WEBP"][12:] + b"EXIF\2\0\0\0ab" * 40_000
    webp = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    jpeg = files["JPEG"]
    second = jpeg.index(b"\xff\xda", jpeg.index(b"\xff\xda") + 2)
    comments = jpeg[:second] + b"\xff\xfe\0\2" * 20_000 + jpeg[second:]
    for data in (webp, comments):
        with pytest.raises(TileError, match="of more than") as caught:
            decode_tile(data, SPEC)
        assert caught.value.status == "too-large"


def test_a_jpeg_2000_header_without_end_counts_as_large() -> None:
    """Its segments are walked in Python, so the walk is bounded."""
    size = b"\xff\x4f\xff\x51" + struct.pack(
        ">HHIIIIIIIIH", 41, 0, 4000, 4000, 0, 0, 4000, 4000, 0, 0, 1
    )
    size += b"\7\1\1"
    assert jpeg2000_memory(size + b"\xff\x64\0\2" * 20_000) > jpeg2000_memory(size) * 100


def test_the_planes_of_an_ome_tiff_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgelung.tiles.tiff_pages import ome_order

    class Pixels:
        calls = 0

        def findall(self, name: str) -> list[dict[str, str]]:
            self.calls += name.endswith("TiffData")
            return [{"IFD": str(i), "FirstC": str(i)} for i in range(9)] if "Tiff" in name else []

    pixels = Pixels()
    ome_order(pixels)  # type: ignore[arg-type]
    assert pixels.calls == 1


@pytest.mark.parametrize("bits", [3, 7, 12])
def test_samples_of_odd_bits_stay_within_what_is_reserved(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    from edgelung.tiles import tiff as module

    samples = np.full((1200, 1200, 3), 2**bits - 1, np.uint16)
    data = tiff(page(samples, bits, 2, compression=8))
    asked: list[float] = []
    monkeypatch.setattr(module.DECODING, "reserve", asked.append)
    tracemalloc.start()
    decode_tile(data, SPEC)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < asked[0] + 8 * 2**20
