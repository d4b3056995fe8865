"""Proof that two tiles show one piece of tissue: a similarity transform that maps keypoints."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.keypoints import Floats, Keypoints, unit

RATIO = 0.9  # of the distances to the nearest and second nearest (Lowe's test, permissive)
ROTATION = 15.0  # degrees by which the rotations of true matches may differ
STRETCH = 1.4  # factor by which their size ratios may differ
DISTANCE = 3.0  # pixels between a keypoint and where the similarity maps it
SCALES = (0.5, 2.0)  # smallest and largest scale of the similarity
MIN_MATCHES = 5  # fewer are no evidence


@dataclass(frozen=True, slots=True)
class Proof:
    """A similarity between two tiles.

    `matrix` float64 (2, 3) maps pixels of the second tile (after mirroring it, if `mirrored`) to
    pixels of the first. `inliers` counts the keypoints at different places that agree with it.
    """

    inliers: int
    mirrored: bool
    matrix: npt.NDArray[np.float64]


def prove(first: Keypoints, second: Keypoints, mirrored: bool) -> Proof | None:
    """Find the similarity from the second tile, as it is or mirrored, to the first, if any."""
    if mirrored:
        second = second.mirrored()
    left, right = _matches(unit(first.descriptors), unit(second.descriptors))
    if len(left) < MIN_MATCHES:
        return None
    agreeing = _agreeing(first.geometry[left], second.geometry[right])
    if len(agreeing) < MIN_MATCHES:
        return None
    target = first.geometry[left[agreeing], :2]
    source = second.geometry[right[agreeing], :2]
    cv2.setRNGSeed(0)
    matrix, inside = cv2.estimateAffinePartial2D(
        source,
        target,
        method=cv2.RANSAC,
        ransacReprojThreshold=DISTANCE,
        maxIters=500,
        confidence=0.999,
    )
    if matrix is None or not SCALES[0] < np.hypot(matrix[0, 0], matrix[1, 0]) < SCALES[1]:
        return None
    # SIFT puts a keypoint per direction on one spot; together they are one piece of evidence.
    spots = {tuple(spot) for spot in np.rint(target[inside[:, 0] > 0] / 2).astype(int).tolist()}
    return Proof(len(spots), mirrored, matrix.astype(np.float64))


def _matches(a: Floats, b: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of keypoints that are each other's nearest and pass Lowe's ratio test."""
    if min(len(a), len(b)) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    cosine = a @ b.T
    rows = np.arange(len(a))
    nearest = cosine.argmax(axis=1)
    best = cosine[rows, nearest]
    mutual = cosine.argmax(axis=0)[nearest] == rows
    cosine[rows, nearest] = -1
    second = cosine.max(axis=1)
    clear = 1 - best < RATIO**2 * (1 - second)  # squared distances are 2 − 2·cosine
    left = np.flatnonzero(mutual & clear)
    return left, nearest[left]


def _agreeing(p: Floats, q: Floats) -> npt.NDArray[np.intp]:
    """The matches that agree with one of them on rotation and size ratio (Jégou et al. 2008)."""
    rotation = p[:, 3] - q[:, 3]
    stretch = np.log(p[:, 2] / q[:, 2])
    difference = np.abs((rotation[:, None] - rotation[None] + 180) % 360 - 180)
    alike = (difference < ROTATION) & (np.abs(stretch[:, None] - stretch[None]) < np.log(STRETCH))
    return np.flatnonzero(alike[alike.sum(axis=1).argmax()])
