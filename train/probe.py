"""A linear probe: multinomial logistic regression on features, regularised by grouped folds.

Tiles of a group are near copies, so groups weigh alike, and the strength of the regularisation is
chosen by how well probes that did not see a group predict it. Convex, deterministic, on the CPU.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PENALTIES = tuple(10.0 ** (power / 2) for power in range(0, -9, -1))  # 1 … 1e-4, half decades
FOLDS = 5
MAX_STEPS = 100  # of L-BFGS; a warm start needs about twenty
TOLERANCE = 1e-4  # largest component of the gradient


@dataclass(frozen=True)
class LinearProbe:
    """Logits = features · weightᵀ + bias.

    Attributes:
        weight: float32 (classes, D).
        bias: float32 (classes,).
        penalty: the chosen strength of the regularisation.
        fold_loss: mean negative log likelihood of the groups that the probes of the folds did not
            see, in nats; None without folds.
        unseen_logits: float32 (N, classes), for each row that it was fitted to the logits of the
            fold's probe that did not see the row's group; None without folds.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    penalty: float
    fold_loss: float | None
    unseen_logits: npt.NDArray[np.float32] | None

    def logits(self, features: Features) -> npt.NDArray[np.float32]:
        """Logits float32 (N, classes) of features (N, D)."""
        return features @ self.weight.T + self.bias


def fit_probe(
    features: Features, labels: Labels, groups: Sequence[str], classes: int, seed: int
) -> LinearProbe:
    """Fit a probe that minimises mean cross entropy + penalty / 2 · ‖W‖².

    Means are over groups. W is for features that are standardised per channel. The penalty is the
    one of PENALTIES with the lowest loss over FOLDS grouped folds; with fewer groups than folds in
    a class, as many folds as it has groups. If the groups cannot be dealt so that each class is in
    two folds, for example because it has one group, there are no folds, and the penalty is the
    middle one.

    Args:
        features: float32 (N, D), finite.
        labels: int64 (N,), class indices below `classes`.
        groups: source of each row, length N; several views of a tile are rows of one group.
        classes: number of classes.
        seed: of the dealing of groups to folds.
    """
    row_weights = _group_weights(groups)
    mean = np.average(features, axis=0, weights=row_weights)  # float64 (D,)
    variance = np.average((features - mean) ** 2, axis=0, weights=row_weights)
    spread = np.sqrt(variance) + 1e-6  # a constant channel stays near 0
    inputs = torch.from_numpy((features - mean) / spread)  # float64 (N, D)
    targets, weights = torch.from_numpy(labels), torch.from_numpy(row_weights)
    dealt, folds = _deal(labels, groups, seed)
    fold_of = torch.from_numpy(dealt)
    losses = np.zeros(len(PENALTIES))
    unseen = np.zeros((len(PENALTIES), len(labels), classes), np.float32)
    for fold in range(folds):
        seen, held_out = fold_of != fold, fold_of == fold
        path = _path(inputs[seen], targets[seen], weights[seen], classes)
        for i, solution in enumerate(path):
            logits = _logits(inputs[held_out], solution)
            unseen[i, dealt == fold] = logits.numpy()
            rows = F.cross_entropy(logits, targets[held_out], reduction="none")
            losses[i] += float((rows * weights[held_out]).sum() / weights.sum())
    chosen = int(losses.argmin()) if folds else len(PENALTIES) // 2
    *_, solution = _path(inputs, targets, weights, classes, PENALTIES[: chosen + 1])
    weight = solution[:, :-1].numpy() / spread
    bias = solution[:, -1].numpy() - weight @ mean
    return LinearProbe(
        weight.astype(np.float32),
        bias.astype(np.float32),
        PENALTIES[chosen],
        float(losses[chosen]) if folds else None,
        unseen[chosen] if folds else None,
    )


def _group_weights(groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Weights (N,) with which all groups weigh alike; their mean is 1."""
    _, inverse, counts = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    return np.asarray(len(inverse) / len(counts) / counts[inverse], np.float64)


def _deal(labels: Labels, groups: Sequence[str], seed: int) -> tuple[npt.NDArray[np.int64], int]:
    """The fold of each row, and how many folds there are; 0 if no deal was found.

    Each class must be in two folds or more. A group may hold several classes, as a patient does who
    has both normal tissue and a tumour. Groups are shuffled, those of many classes first, and each
    goes to the fold that has the fewest groups of its rarest class.
    """
    held: dict[str, set[int]] = {}
    for group, label in zip(groups, labels.tolist(), strict=True):
        held.setdefault(group, set()).add(label)
    names: dict[tuple[int, ...], list[str]] = {}
    for group in sorted(held):
        names.setdefault(tuple(sorted(held[group])), []).append(group)
    total = Counter(label for of in held.values() for label in of)
    folds = min(FOLDS, *total.values())
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    dealt = [Counter[int]() for _ in range(folds)]  # groups of each class in each fold
    for classes, same in sorted(names.items(), key=lambda item: (-len(item[0]), item[0])):
        rarest = min(classes, key=lambda label: total[label])
        for index in rng.permutation(len(same)):
            counts = [(of[rarest], sum(of[label] for label in classes)) for of in dealt]
            fold_of[same[index]] = fold = counts.index(min(counts))
            dealt[fold].update(classes)
    if any(sum(label in of for of in dealt) < 2 for label in total):
        return np.zeros(len(labels), np.int64), 0
    return np.array([fold_of[group] for group in groups], np.int64), folds


def _path(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[Tensor]:
    """The solution (classes, D + 1) for each penalty, each started from the one before."""
    solution = torch.zeros(classes, inputs.shape[1] + 1, dtype=torch.float64)
    path = []
    for penalty in penalties:
        solution = _solve(inputs, targets, weights / weights.sum(), penalty, solution)
        path.append(solution)
    return path


def _solve(
    inputs: Tensor, targets: Tensor, weights: Tensor, penalty: float, start: Tensor
) -> Tensor:
    """Minimise weighted cross entropy + penalty / 2 · ‖W‖² by L-BFGS; the bias is free."""
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=MAX_STEPS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        rows = F.cross_entropy(_logits(inputs, solution), targets, reduction="none")
        value = (rows * weights).sum() + penalty / 2 * solution[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return solution.detach()


def _logits(inputs: Tensor, solution: Tensor) -> Tensor:
    return inputs @ solution[:, :-1].T + solution[:, -1]
