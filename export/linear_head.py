"""A linear classifier on fixed features: multinomial logistic regression by Newton's method."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.evaluation.metrics import Labels

Floats = npt.NDArray[np.float64]

PENALTY = 2e-4  # on squared weights of standardised features; the loss is a mean over tiles
MAX_STEPS = 30
LEAST_GAIN = 1e-7  # of the loss in a step


@dataclass(frozen=True)
class LinearHead:
    """softmax(x · weight + bias): weight (D, C), bias (C,)."""

    weight: Floats
    bias: Floats

    def logits(self, x: Floats) -> Floats:
        """Logits (N, C) of features (N, D)."""
        logits: Floats = x @ self.weight + self.bias
        return logits

    def probabilities(self, x: Floats) -> Floats:
        """Probabilities (N, C) of features (N, D)."""
        return softmax(self.logits(x))

    def at(self, temperature: float) -> "LinearHead":
        """The head with its logits divided by a temperature."""
        return LinearHead(self.weight / temperature, self.bias / temperature)


def softmax(logits: Floats) -> Floats:
    """Probabilities (N, C) of logits (N, C)."""
    return np.exp(_log_softmax(logits))


def fit_head(x: Floats, labels: Labels, classes: int | None = None) -> LinearHead:
    """Fit a head to features (N, D) of tiles with these labels (N,).

    `classes`: their number; None: the largest label is of the last one.
    """
    count = classes or int(labels.max()) + 1
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = np.hstack([(x - mean) / spread, np.ones((len(x), 1))])  # (N, D + 1)
    penalty = np.full((z.shape[1], 1), PENALTY)
    penalty[-1] = 1e-9  # of the bias, only so that the solution is unique
    truth = np.eye(count)[labels]  # (N, C)

    def loss(w: Floats) -> float:
        picked = (truth * _log_softmax(z @ w)).sum()
        return float(-picked / len(z) + 0.5 * (penalty * w**2).sum())

    w = np.zeros((z.shape[1], count))
    before = loss(w)
    for _ in range(MAX_STEPS):
        step = _newton_step(z, truth, w, penalty)
        scale = 1.0
        while (after := loss(w - scale * step)) > before and scale > 1e-3:
            scale /= 2
        if before - after < LEAST_GAIN:
            break
        w, before = w - scale * step, after
    weight = w[:-1] / spread[:, None]
    return LinearHead(weight, w[-1] - mean @ weight)


def _newton_step(z: Floats, truth: Floats, w: Floats, penalty: Floats) -> Floats:
    """Inverse Hessian times gradient, (D + 1, C)."""
    p = softmax(z @ w)
    gradient = z.T @ (p - truth) / len(z) + penalty * w
    count, width = w.shape[1], z.shape[1]
    hessian = np.zeros((count, width, count, width))
    for i in range(count):
        for j in range(i, count):
            curvature = p[:, i] * ((i == j) - p[:, j]) / len(z)
            hessian[i, :, j] = hessian[j, :, i] = z.T @ (z * curvature[:, None])
    square = hessian.reshape(count * width, count * width)
    square[np.diag_indices_from(square)] += np.tile(penalty[:, 0], count)
    step = np.linalg.solve(square, gradient.T.ravel())
    return np.asarray(step, np.float64).reshape(count, width).T


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
