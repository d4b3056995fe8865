"""Is a tile of a size that the model was trained on?

A file is resized as a whole to the model's input. Its aspect ratio decides how much it is squeezed,
and its size in pixels often tells that it was cut at another magnification.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

MAX_ASPECT_RATIO = 1.25  # between the aspect ratios of a tile and of a training tile
MAX_SCALE_RATIO = 2.0  # between the lengths of their sides (geometric mean of width and height)
MAX_SIZES = 200  # that are stored; beyond, the less frequent ones are near a stored one

Size = tuple[int, int]  # width and height, pixels


class TrainedSizes:
    """The pixel sizes of the tiles that a model was trained on.

    Args:
        sizes: number of tiles by '<width>x<height>'; empty where it is not known.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = tuple(sorted(map(parse_size, sizes)))
        self.is_far = lru_cache(maxsize=4096)(self._is_far)

    def _is_far(self, size: Size) -> bool:
        """True if `size` (pixels) is far from every size of the training tiles.

        Rotation does not count. False where the training sizes are not known.
        """
        return bool(self.sizes) and not any(_is_near(size, known) for known in self.sizes)

    def __str__(self) -> str:
        """The sizes in words: '224×224', '512×512 to 768×768 px'."""
        if not self.sizes:
            return "sizes that are not known"
        first, last = self.sizes[0], self.sizes[-1]
        span = f"{first[0]}×{first[1]}"
        if first != last:
            span = f"{len(self.sizes)} sizes, {span} to {last[0]}×{last[1]}"
        return f"{span} px"


def parse_size(text: str) -> Size:
    """'768x512' → (768, 512); raises ValueError."""
    width, height = map(int, text.split("x"))
    if width < 1 or height < 1:
        raise ValueError(f"the size {text!r} is not positive")
    return width, height


def frequent(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The `MAX_SIZES` most frequent sizes with their numbers of tiles."""
    ordered = sorted(sizes, key=lambda item: (-item[1], item[0]))
    return dict(ordered[:MAX_SIZES])


def _is_near(size: Size, known: Size) -> bool:
    aspect = (max(size) / min(size)) / (max(known) / min(known))
    scale = ((size[0] * size[1]) / (known[0] * known[1])) ** 0.5
    return _within(aspect, MAX_ASPECT_RATIO) and _within(scale, MAX_SCALE_RATIO)


def _within(ratio: float, limit: float) -> bool:
    return 1 / limit <= ratio <= limit
