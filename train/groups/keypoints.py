"""SIFT keypoints of a tile, and those of its mirror image.

LC25000's augmentation rotates, crops, scales and mirrors. SIFT (Lowe 2004) is invariant to all but
mirroring, and mirroring a patch only permutes its descriptor: no second detection is needed.
"""

import threading
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SIZE = 224  # pixels of the tiles that are compared
# Keypoints kept, strongest first: to find pairs, to prove them, and to decide doubtful ones.
FEW, MANY, CLOSE = 256, 1000, 4000
_CONTRAST = {FEW: (0.04, 0.01), MANY: (0.005,), CLOSE: (0.002,)}  # OpenCV's, tried in turn
_ENLARGED = {FEW: 1, MANY: 1, CLOSE: 2}
_SCALE = np.float32(512)  # descriptors are unit vectors without negative parts: 0…0.5 → 0…255

# SIFT's descriptor is 4 rows x 4 columns x 8 directions, relative to the keypoint's own direction.
# Mirroring reverses the order of the rows and of the directions.
_BINS = np.arange(128).reshape(4, 4, 8)
MIRROR = _BINS[::-1][:, :, -np.arange(8) % 8].ravel()

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Keypoints:
    """Keypoints of one tile.

    `geometry` float32 (n, 4): x, y and size in pixels, angle in degrees. `descriptors` uint8
    (n, 128): RootSIFT (Arandjelović and Zisserman 2012), times 512.
    """

    geometry: Floats
    descriptors: Bytes

    def __len__(self) -> int:
        return len(self.geometry)

    def strongest(self, limit: int) -> "Keypoints":
        """The first `limit` keypoints; they are sorted by strength."""
        if len(self) <= limit:
            return self
        return Keypoints(self.geometry[:limit].copy(), self.descriptors[:limit].copy())

    def mirrored(self) -> "Keypoints":
        """The keypoints of the tile mirrored left to right."""
        x, y, size, angle = self.geometry.T
        mirrored = np.stack([SIZE - 1 - x, y, size, (180 - angle) % 360], axis=1)
        return Keypoints(mirrored, self.descriptors[:, MIRROR])


def find_keypoints(pixels: Bytes, count: int = FEW) -> Keypoints:
    """Find the strongest keypoints of a uint8 (SIZE, SIZE, 3) tile; none if it is blank.

    `count` is FEW, MANY or CLOSE.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    factor = _ENLARGED[count]
    if factor > 1:
        grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    for sift in _detectors(count):
        points, descriptors = sift.detectAndCompute(grey, None)
        if len(points) >= count // 2:
            break
    if not points:
        return Keypoints(np.empty((0, 4), np.float32), np.empty((0, 128), np.uint8))
    strongest = np.argsort([-point.response for point in points], kind="stable")[:count]
    geometry = np.array([(*points[i].pt, points[i].size, points[i].angle) for i in strongest])
    geometry[:, :2] = (geometry[:, :2] + 0.5) / factor - 0.5  # coordinates are of pixel centres
    geometry[:, 2] /= factor
    descriptors = descriptors[strongest]
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return Keypoints(
        geometry.astype(np.float32), np.minimum(np.rint(root * _SCALE), 255).astype(np.uint8)
    )


def _detectors(count: int) -> list[cv2.SIFT]:
    """Detectors of this thread; OpenCV's objects must not be shared between threads."""
    if not hasattr(_thread, "sift"):
        _thread.sift = {
            n: [cv2.SIFT.create(n, contrastThreshold=c) for c in _CONTRAST[n]] for n in _CONTRAST
        }
    detectors: list[cv2.SIFT] = _thread.sift[count]
    return detectors


def unit(descriptors: Bytes) -> Floats:
    """Descriptors as float32 (n, 128) of about unit length."""
    values: Floats = descriptors.astype(np.float32)
    return np.divide(values, _SCALE, dtype=np.float32)
