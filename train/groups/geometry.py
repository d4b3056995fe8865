"""Proof that two tiles show one piece of tissue: a similarity that carries keypoints across."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.keypoints import Floats, Keypoints, unit

RATIO = 0.9  # a match is nearer than this times the second nearest (Lowe's test, wide)
TURN = 15.0  # degrees by which keypoint angles of true matches may differ from one another
STRETCH = 1.4  # factor by which their sizes may
DISTANCE = 3.0  # pixels from where the similarity says
SCALES = (0.5, 2.0)  # of the similarity
MIN_MATCHES = 5  # less is no evidence, whatever the geometry


@dataclass(frozen=True, slots=True)
class Proof:
    """A similarity between two tiles.

    `matrix` float64 (2, 3) takes pixels of the second tile (turned over first if `mirrored`) to
    pixels of the first; `inliers` counts the keypoints of different places that it carries there.
    """

    inliers: int
    mirrored: bool
    matrix: npt.NDArray[np.float64]


def prove(first: Keypoints, second: Keypoints, mirrored: bool) -> Proof | None:
    """The similarity that explains the second tile, as it is or mirrored, by the first, if any."""
    if mirrored:
        second = second.mirrored()
    left, right = _matches(unit(first.descriptors), unit(second.descriptors))
    if len(left) < MIN_MATCHES:
        return None
    agreeing = _agreeing(first.place[left], second.place[right])
    if len(agreeing) < MIN_MATCHES:
        return None
    to, frm = first.place[left[agreeing], :2], second.place[right[agreeing], :2]
    cv2.setRNGSeed(0)
    matrix, inside = cv2.estimateAffinePartial2D(
        frm, to, method=cv2.RANSAC, ransacReprojThreshold=DISTANCE, maxIters=500, confidence=0.999
    )
    if matrix is None or not SCALES[0] < np.hypot(matrix[0, 0], matrix[1, 0]) < SCALES[1]:
        return None
    # SIFT puts several keypoints on one spot, one a direction: that is one piece of evidence.
    spots = {tuple(spot) for spot in np.rint(to[inside[:, 0] > 0] / 2).astype(int).tolist()}
    return Proof(len(spots), mirrored, matrix.astype(np.float64))


def _matches(a: Floats, b: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of keypoints that are each other's nearest, and clearly so."""
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
    """The largest set of matches that turn and stretch alike (Jégou et al. 2008)."""
    turn = p[:, 3] - q[:, 3]
    stretch = np.log(p[:, 2] / q[:, 2])
    apart = np.abs((turn[:, None] - turn[None] + 180) % 360 - 180)
    alike = (apart < TURN) & (np.abs(stretch[:, None] - stretch[None]) < np.log(STRETCH))
    return np.flatnonzero(alike[alike.sum(axis=1).argmax()])
