"""A generated matrix of image files: right pixels or a true word, never another picture.

The oracle is the array that each file was written from. Writers: tifffile, Pillow and the small
encoders of `encoders.py`.
"""

import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from encoders import bmp, chunk, jpeg, page, png, segment, tiff
from PIL import Image

from edgelung.tiles.reader import ReaderSpec, TileError, read_pixels

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

FULL = ReaderSpec(size=4096)  # larger than any of them: no JPEG is decoded scaled
H, W = 29, 37
Y, X = np.mgrid[0:H, 0:W]
RGB = np.stack([X * 255 // (W - 1), Y * 255 // (H - 1), (X * 3 + Y * 5) % 256], -1).astype(np.uint8)
SMOOTH = np.stack([X * 255 // (W - 1), Y * 255 // (H - 1), X * 2 + Y * 4], -1).astype(np.uint8)
LOW = np.random.default_rng(0).integers(0, 256, RGB.shape).astype(np.uint16)
DEEP = RGB.astype(np.uint16) * 256 + LOW  # the low byte is not the high one
ALPHA = ((X * 7 + Y * 3) % 256).astype(np.uint8)[..., None]
REFUSED = ("unsupported", "several-pages", "slide")


@dataclass(frozen=True)
class Case:
    """A file and what is right: `pixels`, or one of `words`; both where either will do."""

    name: str
    data: bytes
    pixels: np.ndarray | None
    words: tuple[str, ...] = ()
    tolerance: float = 0  # of the largest difference; of the mean one for `lossy`
    lossy: bool = False


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.reshape(H, W, 1), 3, axis=-1)


def blended(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255
    return np.round(colours * share + 255 * (1 - share))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What is to be shown of rows stored with an EXIF orientation."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return np.round(values * 255.0 / (2**bits - 1))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    image = Image.Exif()
    image.endian = order
    image[0x0112] = orientation
    return image.tobytes()


# ---- TIFF by tifffile: colours x bits x planes x compression x layout x byte order x BigTIFF


def colours(bits: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, dict[str, object], float]]:
    """Name, samples, right pixels, options and tolerance."""
    rgb = RGB if bits == 8 else DEEP
    top, dtype = 2**bits - 1, rgb.dtype
    alpha = ALPHA.astype(dtype) * (1 if bits == 8 else 257)
    grey = rgb[..., 1]
    yield "grey", grey, grey3(RGB[..., 1]), {"photometric": "minisblack"}, 0
    yield "white-is-zero", top - grey, grey3(RGB[..., 1]), {"photometric": "miniswhite"}, 0
    yield "rgb", rgb, RGB, {"photometric": "rgb"}, 0
    straight = np.concatenate([rgb, alpha], -1)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    yield "rgba", straight, blended(RGB, ALPHA), options, 1
    premultiplied = (rgb.astype(float) * alpha / top).astype(dtype)
    yield (
        "premultiplied",
        np.concatenate([premultiplied, alpha], -1),
        blended(RGB, ALPHA),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        2,
    )
    yield (
        "grey-alpha",
        np.dstack([grey, alpha]),
        blended(grey3(RGB[..., 1]), ALPHA),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        1,
    )


LAYOUTS = {"strip": {}, "strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 32)}}


def tifffile_cases() -> Iterator[Case]:
    compressions = (None, "zlib", "lzw", "packbits", "zstd", "lzma")
    orders = itertools.cycle(itertools.product("<>", (False, True)))
    for bits, compression, layout, predictor in itertools.product(
        (8, 16), compressions, LAYOUTS, (False, True)
    ):
        if predictor and compression in (None, "packbits"):
            continue
        for name, samples, right, options, tolerance in colours(bits):
            for separate in (False, True) if samples.ndim == 3 else (False,):
                order, big = next(orders)
                stored = np.moveaxis(samples, -1, 0) if separate else samples
                how = options | LAYOUTS[layout]
                if samples.ndim == 3:
                    how["planarconfig"] = "separate" if separate else "contig"
                buffer = io.BytesIO()
                tifffile.imwrite(
                    buffer,
                    np.ascontiguousarray(stored),
                    metadata=None,
                    compression=compression,
                    predictor=predictor,
                    byteorder=order,
                    bigtiff=big,
                    **how,
                )
                words = (bits, compression, layout, predictor, name, separate, order, big)
                data = buffer.getvalue()
                yield Case(f"tifffile {words}", data, right, tolerance=tolerance)


def pictures_in_tiff() -> Iterator[Case]:
    """Codecs that decode a whole picture, and those that are refused by name."""
    for compression, layout, bits in itertools.product(
        ("jpeg2000", "jpegxl", "png", "webp", "jpegxr", "lerc"), ("strip", "tiles"), (8, 16)
    ):
        if compression == "webp" and bits == 16:
            continue
        for name, samples, right, options, tolerance in colours(bits):
            if name not in ("rgb", "grey", "rgba") or (compression == "webp" and name == "grey"):
                continue
            how = options | LAYOUTS[layout]
            if compression in ("jpeg2000", "jpegxl", "webp", "jpegxr"):
                how["compressionargs"] = {"level": 0 if compression == "jpeg2000" else 101}
            if compression in ("jpegxl", "webp"):
                how["compressionargs"] = {"lossless": True}
            buffer = io.BytesIO()
            try:
                tifffile.imwrite(buffer, samples, metadata=None, compression=compression, **how)
            except (ValueError, RuntimeError, TypeError):
                continue  # the codec does not take these samples
            title = f"tiff {(compression, layout, bits, name)}"
            yield Case(title, buffer.getvalue(), right, ("unsupported",), tolerance + 1)


def jpeg_in_tiff() -> Iterator[Case]:
    ycc = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr")).astype(float)
    whole, tables = [(2, 2), (1, 1), (1, 1)], jpeg(ycc, [(1, 1)] * 3)
    start = tables.index(b"\xff\xdb")
    shared = b"\xff\xd8" + tables[start : tables.index(b"\xff\xc0")] + b"\xff\xd9"
    for big, order in itertools.product((False, True), "<>"):
        for photometric, planes, factors in (
            (6, ycc, whole),
            (6, ycc, [(1, 1)] * 3),
            (2, SMOOTH.astype(float), [(1, 1)] * 3),
            (1, ycc[..., :1], [(1, 1)]),
        ):
            right = grey3(np.round(planes)) if planes.shape[-1] == 1 else SMOOTH
            for with_tables in (True, False):
                data = jpeg(planes, factors, tables=with_tables)
                tags = {} if with_tables else {347: shared}
                one = page(planes, 8, photometric, segments=[data], compression=7, tags=tags)
                name = f"tiff jpeg {(photometric, factors, with_tables, order, big)}"
                yield Case(name, tiff(one, order=order, big=big), right, (), 3, lossy=True)
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    contradicting = page(
        SMOOTH, 8, 2, segments=[jpeg(ycc, [(1, 1)] * 3, ahead=jfif)], compression=7
    )
    yield Case("tiff jpeg says RGB, JFIF inside", tiff(contradicting), None, REFUSED)
    for layout in LAYOUTS:
        buffer = io.BytesIO()
        how = {"rowsperstrip": 16} if layout == "strips" else LAYOUTS[layout]
        options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 98}}
        tifffile.imwrite(buffer, SMOOTH, metadata=None, **options, **how)
        yield Case(f"tifffile jpeg {layout}", buffer.getvalue(), SMOOTH, (), 3, lossy=True)


# ---- TIFF by our own writer


def odd_bits() -> Iterator[Case]:
    for bits, order, planar in itertools.product(range(1, 17), "<>", (False, True)):
        values = (DEEP >> (16 - bits)).astype(np.uint16)
        right = RGB if bits > 8 else scaled(values, bits)
        data = tiff(page(values, bits, 2, planar=planar, order=order, rows=5), order=order)
        yield Case(f"tiff RGB of {bits} bits {order} {planar}", data, right)
    for bits, photometric in itertools.product(range(1, 17), (0, 1)):
        values = (DEEP[..., 1:2] >> (16 - bits)).astype(np.uint16)
        right = grey3(RGB[..., 1]) if bits > 8 else scaled(grey3(values), bits)
        stored = values if photometric else (2**bits - 1 - values).astype(np.uint16)
        data = tiff(page(stored, bits, photometric, compression=8))
        yield Case(f"tiff grey of {bits} bits, photometric {photometric}", data, right)
    for bits in (1, 2, 4, 8):
        palette = np.random.default_rng(bits).integers(0, 2**16, (2**bits, 3))
        indices = (RGB[..., :1] >> (8 - bits)).astype(np.uint16)
        tags = {320: [int(n) for n in palette.T.reshape(-1)]}
        data = tiff(page(indices, bits, 3, tags=tags))
        yield Case(f"tiff palette of {bits} bits", data, palette[indices[..., 0]] >> 8)
        tags = {320: [int(n) for n in (palette.T >> 8).reshape(-1)]}
        yield Case(f"tiff 8-bit map {bits}", tiff(page(indices, bits, 3, tags=tags)), None, REFUSED)
    one = page(RGB[..., :1] >> 7, 1, 1, tags={266: [2]})
    one["segments"] = [bytes(int(f"{n:08b}"[::-1], 2) for n in one["segments"][0])]
    yield Case("tiff FillOrder 2", tiff(one), scaled(grey3(RGB[..., 0] >> 7), 1))
    yield Case("tiff FillOrder 2, 8 bits", tiff(page(RGB, 8, 2, tags={266: [2]})), None, REFUSED)


def fewer_bits() -> Iterator[Case]:
    for used in (9, 10, 12, 14, 15):
        values = (DEEP >> (16 - used)).astype(np.uint16)
        top = 2**used - 1
        for name, tags in (
            ("SMaxSampleValue", {340: [0] * 3, 341: [top] * 3}),
            ("MaxSampleValue", {281: [top] * 3}),
        ):
            data = tiff(page(values, 16, 2, tags=tags))
            yield Case(f"tiff {used} in 16, {name}", data, RGB)
        if used < 15:
            yield Case(f"tiff {used} in 16", tiff(page(values, 16, 2)), None, REFUSED)
            data = tiff(page(values[..., :1], 16, 1))
            yield Case(f"tiff grey {used} in 16", data, None, REFUSED)
            data = tiff(page((65535 - values[..., :1]).astype(np.uint16), 16, 0))
            yield Case(f"tiff white is zero {used} in 16", data, None, REFUSED)
            data = png(values, 16, 2)
            yield Case(f"png {used} in 16", data, None, REFUSED)
            yield Case(f"png grey {used} in 16", png(values[..., :1], 16, 0), None, REFUSED)
        stated = chunk(b"sBIT", bytes([used] * 3))
        yield Case(f"png {used} in 16, sBIT", png(values, 16, 2, before=stated), RGB, REFUSED)
        said = chunk(b"sBIT", bytes([used] * 3))
        full = (values << (16 - used)).astype(np.uint16)
        yield Case(f"png sBIT {used}, full range", png(full, 16, 2, before=said), RGB, REFUSED)
        ome = f'<OME xmlns="o"><Image><Pixels SizeX="{W}" SizeY="{H}" SizeC="3" SizeZ="1" SizeT="1"'
        ome += f' SignificantBits="{used}"><Channel SamplesPerPixel="3"/></Pixels></Image></OME>'
        data = tiff(page(values, 16, 2, tags={270: ome.encode()}))
        yield Case(f"OME-TIFF {used} significant bits", data, RGB)
    tags = {341: [4095] * 3}
    yield Case("more than SMaxSampleValue", tiff(page(DEEP, 16, 2, tags=tags)), None, REFUSED)
    tags = {341: [60_000] * 3}
    yield Case("SMaxSampleValue 60000", tiff(page(DEEP, 16, 2, tags=tags)), None, REFUSED)
    tags = {281: [60_000] * 3}
    yield Case("MaxSampleValue 60000", tiff(page(DEEP, 16, 2, tags=tags)), RGB)
    small = chunk(b"sBIT", b"\4\4\4")
    yield Case("png 4 in 8, sBIT", png(RGB >> 4, 8, 2, before=small), None, REFUSED)
    full = (RGB >> 4) * np.uint8(17)
    yield Case("png sBIT 4, full range", png(full, 8, 2, before=small), full)


def stated_16_bits() -> Iterator[Case]:
    """A header that says 16 bits says nothing: writers say so of any 16-bit sample."""
    for used in (10, 12):
        values = (DEEP >> (16 - used)).astype(np.uint16)
        ome = f'<OME xmlns="o"><Image><Pixels SizeX="{W}" SizeY="{H}" SizeC="3" SizeZ="1" SizeT="1"'
        ome += ' SignificantBits="16"><Channel SamplesPerPixel="3"/></Pixels></Image></OME>'
        for tags in ({270: ome.encode()}, {341: [65535] * 3}, {281: [65535] * 3}):
            name = f"stated 16, {used} used {[*tags]}"
            yield Case(name, tiff(page(values, 16, 2, tags=tags)), None, REFUSED)
            yield Case(f"{name}, all used", tiff(page(DEEP, 16, 2, tags=tags)), RGB)
        one = page(values[..., :1], 16, 0)
        yield Case(f"white is zero, {used} bits in 16", tiff(one), None, REFUSED)
    alpha = np.full((H, W, 1), 4095, np.uint16)
    for name, data in (
        ("tiff", tiff(page(np.dstack([DEEP, alpha]), 16, 2, tags={338: [2]}))),
        ("tiff, premultiplied", tiff(page(np.dstack([DEEP, alpha]), 16, 2, tags={338: [1]}))),
        ("png", png(np.dstack([DEEP, alpha]), 16, 6)),
        ("grey png", png(np.dstack([DEEP[..., :1], alpha]), 16, 4)),
    ):
        yield Case(f"{name}, 12-bit alpha in 16", data, None, REFUSED)


def longer_segments() -> Iterator[Case]:
    """Segments of more than the header says are another picture, but for padding."""
    codecs = {1: bytes, 5: imagecodecs.lzw_encode, 8: zlib.compress}
    codecs |= {32773: imagecodecs.packbits_encode, 34925: imagecodecs.lzma_encode}
    codecs |= {50000: imagecodecs.zstd_encode}
    twelve, four, one_bit = DEEP >> 4, RGB >> 4, RGB[..., 1:2] >> 7
    words = twelve.astype("<u2").tobytes()
    for code, encode in codecs.items():
        for name, samples, bits, photometric, stored in (
            ("12 bits in words", twelve, 12, 2, words),
            ("four samples", RGB, 8, 2, np.dstack([RGB, ALPHA]).tobytes()),
            ("16 bits", RGB, 8, 2, DEEP.astype("<u2").tobytes()),
            ("4 bits in bytes", four, 4, 2, four.tobytes()),
            ("1 bit in bytes", one_bit, 1, 1, one_bit.tobytes()),
            ("width 3 too small", RGB[:, :-3], 8, 2, RGB.tobytes()),
        ):
            one = page(samples, bits, photometric, segments=[encode(stored)], compression=code)
            yield Case(f"tiff {code}: {name}", tiff(one), None, REFUSED)
        for extra in (0, 1):
            stored = encode(RGB.tobytes() + bytes(extra))
            one = page(RGB, 8, 2, segments=[stored], compression=code)
            yield Case(f"tiff {code}: {extra} bytes of padding", tiff(one), RGB)
        whole = np.pad(RGB, ((0, -H % 8), (0, 0), (0, 0)), "edge")
        parts = [encode(whole[top : top + 8].tobytes()) for top in range(0, H, 8)]
        one = page(RGB, 8, 2, segments=parts, rows=8, compression=code)
        yield Case(f"tiff {code}: last strip whole", tiff(one), RGB)
    data = tiff(page(RGB, 8, 2, tags={279: [10**6]}))
    yield Case("tiff byte count beyond the file", data, RGB)
    short = page(RGB, 8, 2, segments=[zlib.compress(RGB.tobytes())[:-4]], compression=8)
    yield Case("tiff Deflate without its checksum", tiff(short), None, ("truncated",))
    for bits in (5, 7):
        stored = imagecodecs.jpeg2k_encode(RGB >> (8 - bits), bitspersample=bits, level=0)
        one = page(RGB, 8, 2, segments=[stored], compression=34712)
        yield Case(f"JPEG 2000 of {bits} bits in 8", tiff(one), None, REFUSED)


def contradicting_segments() -> Iterator[Case]:
    """What is inside a segment has another size, depth or number of channels than the header."""
    grey, ones = RGB[..., :1], [(1, 1)] * 3
    plain = jpeg(SMOOTH.astype(float), ones)
    j2k, webp = imagecodecs.jpeg2k_encode, imagecodecs.webp_encode
    pictures = {
        "grey JPEG in RGB": (RGB, 7, jpeg(grey.astype(float), [(1, 1)])),
        "RGB JPEG in grey": (grey, 7, plain),
        "narrow JPEG": (np.pad(RGB, ((0, 0), (0, 8), (0, 0))), 7, plain),
        "low JPEG": (np.pad(RGB, ((0, 8), (0, 0), (0, 0))), 7, plain),
        "grey JPEG 2000 in RGB": (RGB, 34712, j2k(grey[..., 0], level=0)),
        "RGB JPEG 2000 in grey": (grey, 34712, j2k(RGB, level=0)),
        "JPEG 2000 of 16 bits in 8": (RGB, 34712, j2k(DEEP, level=0)),
        "low JPEG 2000": (RGB, 34712, j2k(RGB[:-2], level=0)),
        "narrow WebP": (RGB, 50001, webp(np.ascontiguousarray(RGB[:, :-2]), lossless=True)),
        "low WebP": (RGB, 50001, webp(RGB[:-2], lossless=True)),
    }
    for name, (samples, code, inside) in pictures.items():
        photometric = 1 if samples is grey else 2
        one = page(samples, 8, photometric, segments=[inside], compression=code)
        yield Case(f"tiff {name}", tiff(one), None, ("corrupt", "truncated", "unsupported"))
    one = page(DEEP, 16, 2, segments=[j2k(RGB, level=0)], compression=34712)
    yield Case("tiff JPEG 2000 of 8 bits in 16", tiff(one), None, ("corrupt", "unsupported"))
    for code, encode in ((1, bytes), (8, zlib.compress), (5, imagecodecs.lzw_encode)):
        one = page(RGB, 8, 2, segments=[encode(RGB.tobytes()[:-1])], compression=code)
        yield Case(f"tiff {code}: a byte is missing", tiff(one), None, ("truncated", "corrupt"))
    for values in (765, 771, 3, 0):
        one = page(grey, 8, 3, tags={320: [257] * values or None})
        yield Case(f"tiff palette of {values} values", tiff(one), None, ("corrupt", "unsupported"))


def refused_tiffs() -> Iterator[Case]:
    for name, samples, tags in (
        ("signed", RGB, {339: [2] * 3}),
        ("float", RGB, {339: [3] * 3}),
        ("undefined", RGB, {339: [4] * 3}),
        ("mixed formats", RGB, {339: [1, 1, 2]}),
        ("mixed bits", RGB, {258: [8, 8, 4]}),
        ("Lab", RGB, {262: [8]}),
        ("ICC Lab", RGB, {262: [9]}),
        ("ITU Lab", RGB, {262: [10]}),
        ("raw YCbCr", RGB, {262: [6], 530: [1, 1]}),
        ("CFA", RGB[..., :1], {262: [32803]}),
        ("unknown photometric", RGB, {262: [99]}),
        ("mask", RGB[..., :1] >> 7, {262: [4], 258: [1]}),
        ("extra sample of no meaning", np.dstack([RGB, ALPHA]), {338: [0]}),
        ("four samples, no ExtraSamples", np.dstack([RGB, ALPHA]), {}),
        ("five samples", np.dstack([RGB, ALPHA, ALPHA]), {338: [0, 0]}),
        ("alpha and more", np.dstack([RGB, ALPHA, ALPHA]), {338: [2, 0]}),
        ("two greys", RGB[..., :2], {262: [1]}),
        ("palette with alpha", RGB[..., :2], {262: [3], 338: [2], 320: [257] * 768}),
        ("inks", np.dstack([RGB, ALPHA]), {262: [5], 332: [2]}),
        ("five inks", np.dstack([RGB, ALPHA, ALPHA]), {262: [5], 334: [5]}),
        ("predictor of raw samples", RGB, {317: [2]}),
        ("predictor 3", RGB, {317: [3], 259: [8]}),
        ("sparse", RGB, {279: [0]}),
        ("camera raw", RGB, {50706: b"\1\4\0\0"}),
        ("mask page", RGB, {254: [4]}),
    ):
        yield Case(f"tiff {name}", tiff(page(samples, 8, 2, tags=tags)), None, REFUSED)
    for code in (2, 3, 4, 6, 9, 10, 32766, 32809, 33003, 34661, 34676, 34887, 34934, 65000):
        one = page(RGB, 8, 2, segments=[b"x" * 50], tags={259: [code]})
        yield Case(f"tiff compression {code}", tiff(one), None, ("unsupported",))
    for bits, dtype in ((32, "f4"), (16, "f2"), (64, "f8"), (32, "u4"), (8, "i1"), (16, "i2")):
        buffer = io.BytesIO()
        samples = RGB[..., 0].astype(dtype)
        tifffile.imwrite(buffer, samples, photometric="minisblack", metadata=None)
        yield Case(f"tiff {dtype} of {bits} bits", buffer.getvalue(), None, ("unsupported",))
    yield Case("tiff without RowsPerStrip", tiff(page(RGB, 8, 2, tags={278: None})), RGB)
    yield Case("tiff RowsPerStrip 0", tiff(page(RGB, 8, 2, tags={278: [0]})), RGB)
    yield Case("tiff without StripByteCounts", tiff(page(RGB, 8, 2, tags={279: None})), RGB)
    for how in ({"compression": 8}, {"rows": 7}):
        data = tiff(page(RGB, 8, 2, tags={279: None}, **how))
        yield Case(f"tiff without StripByteCounts {how}", data, None, ("unsupported",))
    cmyk = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    for dots in ([255, 0], [255, 0] * 4, [10, 255]):
        data = tiff(page(cmyk, 8, 5, tags={336: dots}))
        yield Case(f"tiff CMYK, DotRange {dots}", data, None, REFUSED)
    right = np.asarray(Image.fromarray(cmyk, "CMYK").convert("RGB"))
    yield Case("tiff CMYK", tiff(page(cmyk, 8, 5, planar=True)), right)
    yield Case("tiff CMYK, DotRange", tiff(page(cmyk, 8, 5, tags={336: [0, 255]})), right)


def several_pages() -> Iterator[Case]:
    small = RGB[::4, ::4]
    main, copy = page(RGB, 8, 2), page(small, 8, 2, tags={254: [1]})
    wide = np.tile(RGB, (8, 8, 1))
    tiled = page(wide, 8, 2, segments=[bytes(512 * 512 * 3)], tags={322: [512], 323: [512]})
    for name, data in {
        "two pages": tiff(main, page(255 - RGB, 8, 2)),
        "thumbnail first": tiff(copy, main),
        "thumbnail last": tiff(main, copy),
        "reduced copy without a word": tiff(main, page(small, 8, 2)),
        "thumbnail as SubIFD": tiff(page(RGB, 8, 2, subs=[copy])),
        "mask page": tiff(main, page(RGB[..., :1] >> 7, 1, 4, tags={254: [4]})),
        "three grey pages": tiff(*[page(RGB[..., i : i + 1], 8, 1) for i in range(3)]),
        "pyramid": tiff(page(wide, 8, 2, subs=[page(wide[::4, ::4], 8, 2)])),
        "tiled pyramid": tiff(tiled, page(wide[::2, ::2], 8, 2)),
        "Aperio": tiff(page(RGB, 8, 2, tags={270: b"Aperio Image Library v12\0"}), copy),
        "Hamamatsu": tiff(page(RGB, 8, 2, tags={65420: [1]}), copy),
        "Philips": tiff(page(RGB, 8, 2, tags={305: b"Philips DP v1.0\0"}), copy),
        "Ventana": tiff(page(RGB, 8, 2, tags={700: b"<iScan Magnification='40'/>"}), copy),
        "Leica": tiff(
            page(RGB, 8, 2, tags={270: b"<scn xmlns='http://www.leica-microsystems.com/scn'/>\0"}),
            copy,
        ),
        "Trestle": tiff(page(RGB, 8, 2, tags={305: b"MedScan 2.0\0"}), copy),
        "hidden ImageJ pages": tiff(
            page(RGB, 8, 2, tags={270: b"ImageJ=1.53\nimages=9\nslices=9\n\0"})
        ),
        "hidden ImageJ pages, blanks": tiff(
            page(RGB, 8, 2, tags={270: b"ImageJ=1.53\nimages = 3 \n\0"})
        ),
        "hidden pages of a shape": tiff(
            page(RGB, 8, 2, tags={270: b'{"shape": [4, 29, 37, 3]}\0'})
        ),
        "MetaMorph stack": tiff(page(RGB, 8, 2, tags={33629: [1] * 12})),
        "huge tiled": tiff(
            page(RGB, 8, 2, tags={256: [9000], 257: [9000], 322: [256], 323: [256]})
        ),
    }.items():
        yield Case(f"tiff {name}", data, None, ("several-pages", "slide"))
    for axes, shape in (
        ("CYX", (3, H, W)),
        ("ZYX", (5, H, W)),
        ("TYX", (3, H, W)),
        ("ZCYX", (2, 3, H, W)),
    ):
        for style in ({"imagej": True}, {"ome": True}):
            buffer = io.BytesIO()
            stack = np.resize(np.moveaxis(RGB, -1, 0), shape)
            tifffile.imwrite(
                buffer, stack, photometric="minisblack", metadata={"axes": axes}, **style
            )
            yield Case(f"stack {axes} {style}", buffer.getvalue(), None, REFUSED)


def ome_xml(
    channels: str, *, size: str = 'SizeC="3" SizeZ="1" SizeT="1"', inner: str = ""
) -> bytes:
    head = f'<?xml version="1.0"?><OME xmlns="o"><Image><Pixels SizeX="{W}" SizeY="{H}" {size}>'
    return f"{head}{channels}{inner}</Pixels></Image></OME>\0".encode()


def channel_pages() -> Iterator[Case]:
    """Three pages are one picture only where the file says which is red, green and blue."""

    def stack(description: bytes, order: tuple[int, ...] = (0, 1, 2), **more: object) -> bytes:
        pages = [page(RGB[..., i : i + 1], 8, 1, **more) for i in order]
        pages[0]["tags"][270] = description
        return tiff(*pages)

    named = {n: f'<Channel ID="{n}" Name="{n}"/>' for n in ("Red", "Green", "Blue", "DAPI")}
    colour = {0: -16776961, 1: 16711935, 2: 65535, 3: -1}
    coloured = [f'<Channel ID="c" Color="{value}"/>' for value in colour.values()]
    names = named["Red"] + named["Green"] + named["Blue"]
    swapped = named["Blue"] + named["Green"] + named["Red"]
    yield Case("OME by names", stack(ome_xml(names)), RGB)
    yield Case("OME by names, BGR", stack(ome_xml(swapped), (2, 1, 0)), RGB)
    yield Case("OME by colours", stack(ome_xml("".join(coloured[:3]))), RGB)
    yield Case(
        "OME by colours, GRB",
        stack(ome_xml("".join([coloured[1], coloured[0], coloured[2]])), (1, 0, 2)),
        RGB,
    )
    contradiction = named["Red"].replace("/>", ' Color="65535"/>') + named["Green"] + named["Blue"]
    for name, xml in {
        "without names": ome_xml('<Channel ID="c"/>' * 3),
        "fluorescence": ome_xml(named["DAPI"] + named["Green"] + named["Red"]),
        "white channels": ome_xml(coloured[3] * 3),
        "red twice": ome_xml(named["Red"] * 2 + named["Blue"]),
        "contradiction": ome_xml(contradiction),
        "z": ome_xml(names, size='SizeC="1" SizeZ="3" SizeT="1"'),
        "other order": ome_xml(
            names, inner="".join(f'<TiffData IFD="{2 - i}" FirstC="{i}"/>' for i in range(3))
        ),
        "entities": b'<!DOCTYPE OME [<!ENTITY a "b">]>' + ome_xml(names),
        "broken": ome_xml(names)[:-20],
        "elsewhere": b'<OME xmlns="o"><BinaryOnly MetadataFile="a.ome.xml"/></OME>\0',
    }.items():
        yield Case(f"OME {name}", stack(xml), None, REFUSED)
    one = page(RGB[..., :1], 8, 1, tags={270: ome_xml(names)})
    yield Case("OME of which one channel is here", tiff(one), None, REFUSED)
    yield Case("OME RGB page", tiff(page(RGB, 8, 2, tags={270: ome_xml(names)})), RGB)
    one = page(RGB, 8, 2, tags={270: ome_xml(swapped)})
    yield Case("OME RGB page named BGR", tiff(one), None, REFUSED)
    composite = b"ImageJ=1.53t\nimages=3\nchannels=3\nmode=composite\n\0"
    yield Case("ImageJ composite", stack(composite), RGB)
    ramp, zero = bytes(range(256)), bytes(256)
    luts = [ramp + zero + zero, zero + ramp + zero, zero + zero + ramp]
    for name, tables, right in (("RGB", luts, RGB), ("other", luts[::-1], None)):
        block = b"IJIJluts" + (3).to_bytes(4) + b"".join(tables)
        data = stack(composite)
        pages = [page(RGB[..., i : i + 1], 8, 1) for i in range(3)]
        pages[0]["tags"] |= {270: composite, 50838: [12, 768, 768, 768], 50839: block}
        data = tiff(*pages)
        yield Case(
            f"ImageJ composite of {name} tables", data, right, () if right is not None else REFUSED
        )
    yield Case(
        "ImageJ grey stack", stack(composite.replace(b"composite", b"grayscale")), None, REFUSED
    )
    yield Case("ImageJ, one page", tiff(page(RGB, 8, 2, tags={270: b"ImageJ=1.53t\n\0"})), RGB)


def orientations() -> Iterator[Case]:
    for orientation in range(10):
        right = turned(RGB, orientation)
        data = tiff(page(RGB, 8, 2, tags={274: [orientation]}))
        yield Case(f"tiff orientation {orientation}", data, right)
        for order in "<>":
            block = exif(orientation, order).removeprefix(b"Exif\0\0")
            data = png(RGB, 8, 2, before=chunk(b"eXIf", block))
            yield Case(f"png orientation {orientation} {order}", data, right)
            bare = chunk(b"eXIf", block[:22])  # without the offset of a next directory
            data = png(RGB, 8, 2, before=bare)
            yield Case(f"png orientation {orientation} {order}, no next", data, right)
            data = encoded(
                Image.fromarray(RGB), "WEBP", lossless=True, exif=exif(orientation, order)
            )
            yield Case(f"webp orientation {orientation} {order}", data, right)
            image = Image.fromarray(SMOOTH)
            data = encoded(image, "JPEG", quality=98, subsampling=0, exif=exif(orientation, order))
            right_jpeg = turned(SMOOTH, orientation)
            yield Case(
                f"jpeg orientation {orientation} {order}", data, right_jpeg, (), 2, lossy=True
            )
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    yield Case("png XMP orientation", png(RGB, 8, 2, before=chunk(b"iTXt", text)), RGB)
    data = encoded(Image.fromarray(RGB), "WEBP", lossless=True, xmp=xmp)
    yield Case("webp XMP orientation", data, RGB)
    yield Case("tiff XMP orientation", tiff(page(RGB, 8, 2, tags={700: xmp})), RGB)
    block = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    data = encoded(Image.fromarray(SMOOTH), "JPEG", quality=98, subsampling=0)
    yield Case("jpeg XMP orientation", data[:2] + block + data[2:], SMOOTH, (), 2, lossy=True)


# ---- PNG


def pngs() -> Iterator[Case]:
    kinds = [(0, b) for b in (1, 2, 4, 8, 16)] + [(2, 8), (2, 16)]
    kinds += [(3, b) for b in (1, 2, 4, 8)] + [(4, 8), (4, 16), (6, 8), (6, 16)]
    for (colour, bits), interlaced, filtered, key in itertools.product(
        kinds, (False, True), (0, 1, 2), (False, True)
    ):
        if key and colour > 3:
            continue
        source = DEEP >> (16 - bits) if bits != 8 else RGB
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        samples, before, tolerance = source[..., :channels].astype(np.uint16), b"", 0
        alpha = ALPHA.astype(np.uint16) * (257 if bits == 16 else 1)
        if colour == 3:
            palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint8)
            before = chunk(b"PLTE", palette.tobytes())
            right = palette[samples[..., 0]].astype(float)
        elif colour in (4, 6):
            samples = np.concatenate([source[..., : channels - 1], alpha], -1).astype(np.uint16)
            shown = RGB if colour == 6 else grey3(RGB[..., 0])
            right, tolerance = blended(shown, ALPHA), 1
        else:
            right = (samples >> 8).astype(float) if bits > 8 else scaled(samples, bits)
            right = np.repeat(right, 3, -1) if colour == 0 else right
        if key and colour == 3:
            before += chunk(b"tRNS", bytes([0, 128]))
            right = np.where(samples == 0, 255, right)
            right = np.where(samples == 1, blended(palette[1], np.array(128)), right)
            tolerance = 1
        elif key:
            value = samples[H // 2, W // 2]
            before += chunk(b"tRNS", value.astype(">u2").tobytes())
            right = np.where((samples == value).all(-1, keepdims=True), 255, right)
        data = png(samples, bits, colour, interlaced=interlaced, before=before, filtered=filtered)
        name = f"png {(colour, bits, interlaced, filtered, key)}"
        words = ("unsupported",) if key and (colour, bits) == (2, 16) else ()
        yield Case(name, data, right, words, tolerance)
    for colour, channels in ((0, 1), (2, 3)):
        high = chunk(b"tRNS", bytes([1, 5] * channels))
        data = png(RGB[..., :channels], 8, colour, before=high)
        yield Case(f"png key of more than 8 bits, {colour}", data, None, REFUSED)
    frame = chunk(b"fcTL", np.array([0, W, H, 0, 0], ">u4").tobytes() + b"\0\1\0\1\0\0")
    for name, before in {
        "gAMA": chunk(b"gAMA", (100_000).to_bytes(4)),
        "sRGB": chunk(b"sRGB", b"\0"),
        "sBIT of all": chunk(b"sBIT", b"\x08\x08\x08"),
        "bKGD": chunk(b"bKGD", bytes(6)),
        "one frame": chunk(b"acTL", bytes([0, 0, 0, 1, 0, 0, 0, 0])) + frame,
    }.items():
        yield Case(
            f"png {name}", png(RGB, 8, 2, before=before), RGB, REFUSED if "frame" in name else ()
        )
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    animated = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield Case("animated png", animated, None, ("several-pages",))
    hidden = encoded(frames[0], "PNG", save_all=True, append_images=frames, default_image=True)
    yield Case("animated png, still apart", hidden, None, ("several-pages",))


# ---- BMP


def bmps() -> Iterator[Case]:
    for bits, header, top_down in itertools.product(
        (1, 2, 4, 8), (12, 40, 64, 108, 124), (False, True)
    ):
        if header == 12 and top_down:
            continue
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint8)
        indices = RGB[..., 0] >> (8 - bits)
        data = bmp(indices, bits, palette=palette, header=header, top_down=top_down)
        yield Case(f"bmp {(bits, header, top_down)}", data, palette[indices])
    r, g, b = (RGB[..., i].astype(np.uint32) for i in range(3))
    five = [scaled(RGB[..., i] >> 3, 5) for i in range(3)]
    for header, top_down in itertools.product((12, 16, 40, 52, 56, 64, 108, 124), (False, True)):
        if header in (12, 16) and top_down and header == 12:
            continue
        how = {"header": header, "top_down": top_down}
        whole = r << 16 | g << 8 | b
        yield Case(f"bmp 24 {how}", bmp(whole, 24, **how), RGB)
        yield Case(
            f"bmp 32, spare byte {how}",
            bmp(whole | ALPHA[..., 0].astype(np.uint32) << 24, 32, **how),
            RGB,
        )
        short = r >> 3 << 10 | g >> 3 << 5 | b >> 3
        yield Case(f"bmp 16 {how}", bmp(short, 16, **how), np.stack(five, -1))
        if header not in (40, 52, 56, 108, 124):
            continue
        fields = how | {"compression": 3}
        short = r >> 3 << 11 | g >> 2 << 5 | b >> 3
        right = np.stack([five[0], scaled(RGB[..., 1] >> 2, 6), five[2]], -1)
        masks = (0xF800, 0x7E0, 0x1F)
        yield Case(f"bmp 565 {how}", bmp(short, 16, masks=masks, **fields), right)
        swapped = b << 16 | g << 8 | r
        masks = (0xFF, 0xFF00, 0xFF0000)
        yield Case(f"bmp BGR fields {how}", bmp(swapped, 32, masks=masks, **fields), RGB)
        ten = (DEEP >> 6).astype(np.uint32)
        packed = ten[..., 0] << 20 | ten[..., 1] << 10 | ten[..., 2]
        masks = (0x3FF00000, 0xFFC00, 0x3FF)
        yield Case(f"bmp 10 bits {how}", bmp(packed, 32, masks=masks, **fields), RGB)
        if header >= 56:
            words = whole | ALPHA[..., 0].astype(np.uint32) << 24
            masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
            data = bmp(words, 32, masks=masks, **fields)
            yield Case(f"bmp alpha {how}", data, blended(RGB, ALPHA), (), 1)
            data = bmp(whole, 32, masks=masks, **fields)
            yield Case(f"bmp alpha of zeros {how}", data, None, REFUSED)
    for code, words in ((4, REFUSED), (5, REFUSED), (11, REFUSED)):
        yield Case(f"bmp compression {code}", bmp(r, 24, compression=code), None, words)
    yield from run_length_bmps()


def run_length_bmps() -> Iterator[Case]:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    wide = RGB[..., 0] // 64
    runs = b""
    for row in wide[::-1].tolist():
        for value, group in itertools.groupby(row):
            runs += bytes([len(list(group)), value])
        runs += b"\0\0"
    data = bmp(wide, 8, palette=palette, compression=1, stored=runs + b"\0\1")
    yield Case("bmp RLE8 runs", data, palette[wide])
    literal = b""
    for row in RGB[::-1, :, 0].tolist():
        literal += bytes([0, W, *row]) + b"\0" * (W % 2) + b"\0\0"
    data = bmp(RGB[..., 0], 8, palette=palette, compression=1, stored=literal + b"\0\1")
    yield Case("bmp RLE8 literal", data, palette[RGB[..., 0]])
    halves = RGB[..., 0] >> 4
    stored = b""
    for row in halves[::-1].tolist():
        padded = [*row, 0, 0, 0]
        packed = [padded[i] << 4 | padded[i + 1] for i in range(0, W + 1, 2)]
        stored += bytes([0, W, *packed]) + b"\0" * (len(packed) % 2) + b"\0\0"
    data = bmp(halves, 4, palette=palette[:16], compression=2, stored=stored + b"\0\1")
    yield Case("bmp RLE4 literal", data, palette[halves])
    pairs = np.where(np.arange(W) % 2, 3, 9) * np.ones((H, 1), int)
    stored = (bytes([W, 0x93]) + b"\0\0") * H + b"\0\1"
    data = bmp(pairs, 4, palette=palette[:16], compression=2, stored=stored)
    yield Case("bmp RLE4 runs", data, palette[pairs])
    gap = bytes([5, 1, 0, 2, 3, 0]) + bytes([W - 8, 2]) + runs[:0] + b"\0\1"
    data = bmp(wide, 8, palette=palette, compression=1, stored=gap)
    yield Case("bmp RLE8 that skips pixels", data, None, REFUSED)


# ---- JPEG and WebP

SAMPLINGS = [
    [(1, 1)] * 3,
    *[
        [(h, v), (1, 1), (1, 1)]
        for h, v in itertools.product(range(1, 5), range(1, 5))
        if 1 < h * v <= 8
    ],
    [(2, 2), (2, 1), (1, 1)],
    [(2, 2), (1, 2), (2, 1)],
    [(2, 1), (2, 1), (1, 1)],
    [(1, 2), (1, 1), (1, 2)],
]


def jpegs() -> Iterator[Case]:
    ycc = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr")).astype(float)
    for factors, how in itertools.product(
        SAMPLINGS, ({}, {"restart": 1}, {"separate_scans": True})
    ):
        data = jpeg(ycc, factors, **how)
        yield Case(f"jpeg {factors} {how}", data, SMOOTH, (), 6, lossy=True)
    adobe = [segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([n])) for n in range(3)]
    plain = [(1, 1)] * 3
    grey = grey3(np.round(ycc[..., 0]))
    data = jpeg(SMOOTH.astype(float), plain, ahead=adobe[0])
    yield Case("jpeg RGB by APP14", data, SMOOTH, (), 3, lossy=True)
    data = jpeg(ycc, plain, ahead=adobe[1])
    yield Case("jpeg YCbCr by APP14", data, SMOOTH, (), 3, lossy=True)
    yield Case("jpeg grey", jpeg(ycc[..., :1], [(1, 1)]), grey, (), 3, lossy=True)
    yield Case("jpeg grey 2x2", jpeg(ycc[..., :1], [(2, 2)]), grey, (), 3, lossy=True)
    cmyk = np.asarray(Image.fromarray(SMOOTH).convert("CMYK")).astype(float)
    yield Case("jpeg CMYK, inverted or not", jpeg(cmyk, [(1, 1)] * 4), None, REFUSED)
    data = jpeg(255 - cmyk, [(1, 1)] * 4, ahead=adobe[0])
    yield Case("jpeg CMYK, Adobe inverted", data, SMOOTH, (), 3, lossy=True)
    inks = Image.fromarray(cmyk[..., :3].astype(np.uint8)).convert("YCbCr")
    ycck = np.dstack([np.asarray(inks), 255 - cmyk[..., 3]]).astype(float)
    data = jpeg(ycck, [(1, 1)] * 4, ahead=adobe[2])
    yield Case("jpeg YCCK", data, SMOOTH, (), 3, lossy=True)
    yield Case("jpeg two components", jpeg(ycc[..., :2], [(1, 1)] * 2), None, REFUSED)
    yield Case(
        "jpeg five components", jpeg(np.dstack([ycc, ycc])[..., :5], [(1, 1)] * 5), None, REFUSED
    )
    for name, frame, bits in (
        *(
            (f"SOF {n - 0xC0}", n, 8)
            for n in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
        ),
        ("of 12 bits", 0xC1, 12),
        ("extended sequential", 0xC1, 8),
    ):
        right = SMOOTH if name == "extended sequential" else None
        data = jpeg(ycc, plain, frame=frame, bits=bits)
        yield Case(
            f"jpeg {name}",
            data,
            right,
            () if right is not None else ("unsupported",),
            3,
            lossy=True,
        )
    data = bytearray(jpeg(ycc, plain))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 7] = b"\0\0"
    yield Case("jpeg DNL", bytes(data), None, ("unsupported",))
    icc = segment(0xE2, b"ICC_PROFILE\0\1\3" + bytes(40))
    jfif3 = segment(0xE0, b"JFIF\0\3\1\0\0\1\0\1\0\0")
    for name, ahead in {
        "incomplete ICC": icc,
        "stray byte": segment(0xFE, b"note") + b"\x3f",
        "stray bytes": segment(0xFE, b"note") + b"\0\1\2\3" + segment(0xFE, b"note"),
        "fill bytes": b"\xff\xff\xff" + segment(0xFE, b"note"),
        "JFIF 3": jfif3,
        "unknown APP": segment(0xEB, bytes(300)),
    }.items():
        yield Case(f"jpeg {name}", jpeg(ycc, plain, ahead=ahead), SMOOTH, (), 3, lossy=True)
    yield Case(
        "jpeg with more behind it", jpeg(ycc, plain) + b"tail" * 99, SMOOTH, (), 3, lossy=True
    )
    image = Image.fromarray(SMOOTH)
    for progressive, subsampling, restart in itertools.product((False, True), (0, 1, 2), (0, 1)):
        how = {
            "progressive": progressive,
            "subsampling": subsampling,
            "restart_marker_rows": restart,
        }
        data = encoded(image, "JPEG", quality=97, **how)
        yield Case(f"jpeg Pillow {how}", data, SMOOTH, (), 3, lossy=True)
    data = encoded(image, "JPEG", quality=97, keep_rgb=True)
    yield Case("jpeg Pillow RGB", data, SMOOTH, (), 3, lossy=True)
    data = encoded(image, "MPO", save_all=True, append_images=[image.rotate(180)])
    yield Case("jpeg MPO", data, None, ("several-pages",))


def webps() -> Iterator[Case]:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    for method in range(5):
        data = encoded(Image.fromarray(RGB), "WEBP", lossless=True, method=method)
        yield Case(f"webp lossless {method}", data, RGB)
        data = encoded(rgba, "WEBP", lossless=True, exact=True, method=method)
        yield Case(f"webp lossless alpha {method}", data, blended(RGB, ALPHA), (), 1)
        data = encoded(Image.fromarray(SMOOTH), "WEBP", quality=98, method=method)
        yield Case(f"webp lossy {method}", data, SMOOTH, (), 4, lossy=True)
    data = encoded(Image.fromarray(np.dstack([SMOOTH, ALPHA])), "WEBP", quality=98)
    yield Case("webp lossy alpha", data, blended(SMOOTH, ALPHA), (), 4, lossy=True)
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield Case("webp animated", data, None, ("several-pages",))


def others() -> Iterator[Case]:
    for kind in ("GIF", "JPEG2000", "ICO", "PPM", "TGA", "AVIF"):
        try:
            data = encoded(Image.fromarray(RGB), kind)
        except (OSError, KeyError):
            continue  # this build of Pillow does not write it
        yield Case(kind, data, None, ("unsupported",))
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    yield Case(
        "animated GIF",
        encoded(frames[0], "GIF", save_all=True, append_images=frames),
        None,
        REFUSED,
    )
    yield Case("DICOM", bytes(128) + b"DICM" + bytes(200), None, ("unsupported",))
    uid = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    yield Case("DICOM slide", bytes(128) + b"DICM" + uid + bytes(200), None, ("slide",))


GROUPS = {
    group.__name__: list(group())
    for group in (
        tifffile_cases,
        pictures_in_tiff,
        jpeg_in_tiff,
        odd_bits,
        fewer_bits,
        stated_16_bits,
        longer_segments,
        contradicting_segments,
        refused_tiffs,
        several_pages,
        channel_pages,
        orientations,
        pngs,
        bmps,
        jpegs,
        webps,
        others,
    )
}


def test_the_matrix_has_more_than_600_images() -> None:
    assert sum(map(len, GROUPS.values())) >= 600


def judge(case: Case, path: object) -> str:
    """What is wrong with how a file was read; '' if nothing."""
    try:
        found = read_pixels(path, FULL).astype(float)
    except TileError as error:
        return "" if error.status in case.words else f"{case.name}: {error.status}: {error}"
    if case.pixels is None:
        return f"{case.name}: read, expected one of {case.words}"
    if found.shape != case.pixels.shape:
        return f"{case.name}: {found.shape}, expected {case.pixels.shape}"
    difference = np.abs(found - case.pixels)
    worst = difference.mean() if case.lossy else difference.max()
    return "" if worst <= case.tolerance else f"{case.name}: differs by {worst:.1f}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_gives_its_array_or_a_true_word(
    group: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("matrix") / "tile"
    wrong = []
    for case in GROUPS[group]:
        path.write_bytes(case.data)
        wrong.append(judge(case, path))
    assert [text for text in wrong if text] == []
