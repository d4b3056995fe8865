"""SIFT keypoints of a tile, in a form that can be turned over as well as matched.

LC25000's augmentation rotates, crops, scales and mirrors. SIFT (Lowe 2004) sees through all but the
last; mirroring a patch merely permutes its descriptor, so a mirrored tile costs no second pass.
"""

import threading
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SIZE = 224  # pixels that tiles are read at
# Keypoints kept, strongest first: to find pairs, to prove them, and to look closer where in doubt.
FEW, MANY, CLOSE = 256, 1000, 4000
_CONTRAST = {FEW: (0.04, 0.01), MANY: (0.005,), CLOSE: (0.002,)}  # OpenCV's, tried in turn
_ENLARGED = {FEW: 1, MANY: 1, CLOSE: 2}
_SCALE = np.float32(512)  # descriptors are unit vectors without negative parts: 0…0.5 → 0…255

# SIFT's descriptor is 4 rows x 4 columns x 8 directions, along the keypoint's own. Turned over,
# the rows change places and the directions run the other way.
_BINS = np.arange(128).reshape(4, 4, 8)
MIRROR = _BINS[::-1][:, :, -np.arange(8) % 8].ravel()

_own = threading.local()


@dataclass(frozen=True, slots=True)
class Keypoints:
    """Keypoints of one tile or of many: x and y in pixels, size in pixels, angle in degrees.

    `place` float32 (n, 4); `descriptors` uint8 (n, 128): RootSIFT (Arandjelović and Zisserman
    2012), times 512.
    """

    place: Floats
    descriptors: Bytes

    def __len__(self) -> int:
        return len(self.place)

    def strongest(self, most: int) -> "Keypoints":
        """The first `most`: they stand in the order of their strength."""
        if len(self) <= most:
            return self
        return Keypoints(self.place[:most].copy(), self.descriptors[:most].copy())

    def mirrored(self) -> "Keypoints":
        """The keypoints of the tile turned over, left to right."""
        x, y, size, angle = self.place.T
        turned = np.stack([SIZE - 1 - x, y, size, (180 - angle) % 360], axis=1)
        return Keypoints(turned, self.descriptors[:, MIRROR])


def find_keypoints(pixels: Bytes, most: int = FEW) -> Keypoints:
    """The FEW, MANY or CLOSE strongest keypoints of a uint8 [SIZE, SIZE, 3] tile; none if blank."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    times = _ENLARGED[most]
    if times > 1:
        grey = cv2.resize(grey, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    for sift in _detectors(most):
        found, descriptors = sift.detectAndCompute(grey, None)
        if len(found) >= most // 2:
            break
    if not found:
        return Keypoints(np.empty((0, 4), np.float32), np.empty((0, 128), np.uint8))
    strongest = np.argsort([-point.response for point in found], kind="stable")[:most]
    place = np.array([(*found[i].pt, found[i].size, found[i].angle) for i in strongest])
    place[:, :2] = (place[:, :2] + 0.5) / times - 0.5  # pixels are squares: so do sizes change
    place[:, 2] /= times
    chosen = descriptors[strongest]
    root = np.sqrt(chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1e-9))
    return Keypoints(
        place.astype(np.float32), np.minimum(np.rint(root * _SCALE), 255).astype(np.uint8)
    )


def _detectors(most: int) -> list[cv2.SIFT]:
    """This thread's own: OpenCV's objects are not shared between threads."""
    if not hasattr(_own, "sift"):
        _own.sift = {
            n: [cv2.SIFT.create(n, contrastThreshold=c) for c in _CONTRAST[n]] for n in _CONTRAST
        }
    detectors: list[cv2.SIFT] = _own.sift[most]
    return detectors


def unit(descriptors: Bytes) -> Floats:
    """Descriptors float32 (n, 128) of about unit length."""
    values: Floats = descriptors.astype(np.float32)
    return np.divide(values, _SCALE, dtype=np.float32)
