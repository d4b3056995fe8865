"""`ReaderSpec`: what the reader does, in the words that a bundle stores."""

from dataclasses import asdict, dataclass
from typing import Any

from edgelung.core.errors import EdgelungError, one_line


@dataclass(frozen=True)
class ReaderSpec:
    """How pixels come from a file, in words a second implementation could follow.

    The words are fixed for one `version`; only `size` (pixels) varies.
    """

    size: int = 224
    version: int = 1
    colour: str = "RGB, 8 bit; alpha over white; 16-bit grey by its high byte; no ICC"
    orientation: str = "EXIF"
    jpeg: str = "libjpeg-turbo, scaled by the smallest M/8 that still covers the size"
    resize: str = "Pillow BILINEAR (antialiased triangle filter), whole tile, no crop"

    def to_json(self) -> dict[str, Any]:
        """The spec as it stands in bundle.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ReaderSpec":
        """Read a spec back; raises EdgelungError where this reader would not give those pixels."""
        size = value.get("size")
        if not isinstance(size, int) or not 16 <= size <= 4096:
            raise EdgelungError(
                f"preprocessing names the tile size {one_line(repr(size))}; expected 16…4096"
            )
        spec = cls(size=size)
        if value != spec.to_json():
            raise EdgelungError(
                f"preprocessing spec {one_line(value)} is not the one this edgelung implements "
                f"({spec.to_json()}); install the edgelung version that wrote the bundle"
            )
        return spec
