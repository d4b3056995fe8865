"""Images of every kind that the reader takes, made on the spot."""

import io
import struct
import zlib

import numpy as np
from encoders import page, tiff
from PIL import Image


def picture(width: int = 150, height: int = 110) -> Image.Image:
    """Noise on a gradient: whatever is missing or moved shows."""
    rng = np.random.default_rng(5)
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    planes = np.stack([x, y, (x + y) / 2], axis=-1) + rng.integers(0, 55, (height, width, 3))
    return Image.fromarray(planes.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour: int, data: bytes, interlaced: int = 0
) -> bytes:
    """A PNG of raw scan lines, filter bytes included."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def interlaced_png(image: Image.Image) -> bytes:
    """Adam7, which Pillow reads and does not write."""
    pixels = np.asarray(image.convert("RGB"))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    lines = b""
    for top, left, down, right in [*passes, (1, 0, 2, 1)]:
        for line in pixels[top::down, left::right]:
            lines += b"\0" + line.tobytes() if line.size else b""
    return png(image.width, image.height, 8, 2, lines, interlaced=1)


def deep_png(image: Image.Image) -> bytes:
    """16 bits a channel."""
    pixels = np.asarray(image.convert("RGB")).astype(">u2") * 257
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    return png(image.width, image.height, 16, 2, lines)


def ycck(image: Image.Image) -> bytes:
    """A four-channel JPEG whose Adobe marker says YCCK."""
    data = bytearray(encoded(image.convert("CMYK"), "JPEG", quality=90))
    marker = data.find(b"Adobe")
    if marker < 0:
        raise AssertionError("Pillow writes an Adobe marker into CMYK files")
    data[marker + 11] = 2
    return bytes(data)


def deep(image: Image.Image) -> np.ndarray:
    """16 bits a sample."""
    return np.asarray(image.convert("RGB")).astype(np.uint16) * 257


def samples() -> dict[str, bytes]:
    """Name with the usual suffix → bytes of a whole file."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(180)
    return {
        "baseline.jpg": encoded(image, "JPEG", quality=90),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "restart.jpg": encoded(image, "JPEG", restart_marker_rows=1),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "ycck.jpg": ycck(image),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "plain.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(64), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "interlaced.png": interlaced_png(image),
        "deep.png": deep_png(image),
        "deepgrey.png": encoded(
            Image.fromarray(np.arange(16500, dtype=np.uint16).reshape(110, 150)), "PNG"
        ),
        "raw.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(image, "TIFF", compression="tiff_deflate"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "planar.tif": tiff(
            page(deep(image), 16, 2, planar=True, rows=9, order=">"), order=">", big=True
        ),
        "plain.bmp": encoded(image, "BMP"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
    }
