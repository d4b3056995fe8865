"""A linear probe: the optimum of its loss, groups alike, a penalty that unseen groups choose."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgelung.train.probe import FOLDS, PENALTIES, _deal, fit_probe

Data = tuple[np.ndarray, np.ndarray, list[str]]


def tiles(groups: int = 30, each: int = 6, spread: float = 1.0, noise: float = 0.3) -> Data:
    """Features (N, 12) of three classes: groups scatter around a class, tiles around a group."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(groups), each)
    labels = names % 3
    centers = rng.normal(0, 1, (3, 12))[labels]
    own = rng.normal(0, spread, (groups, 12))[names]
    features = centers + own + rng.normal(0, noise, (len(names), 12))
    return features.astype(np.float32), labels.astype(np.int64), [f"g{n}" for n in names]


def test_the_probe_is_the_optimum_of_the_loss_it_names() -> None:
    features, labels, groups = tiles()
    probe = fit_probe(features, labels, groups, 3, seed=0)
    mean, spread = features.mean(0), features.std(0)
    inputs = torch.from_numpy((features - mean) / spread).double()
    weight = torch.from_numpy(probe.weight * spread).double().requires_grad_()
    bias = torch.from_numpy(probe.bias + probe.weight @ mean).double().requires_grad_()
    loss = F.cross_entropy(inputs @ weight.T + bias, torch.from_numpy(labels))
    loss = loss + probe.penalty / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) < 1e-3
    assert probe.logits(features).shape == (len(labels), 3)


def test_groups_weigh_alike_however_many_tiles_they_have() -> None:
    features, labels, groups = tiles()
    rows = [i for i, group in enumerate(groups) for _ in range(9 if group == "g4" else 1)]
    once = fit_probe(features, labels, groups, 3, seed=0)
    copied = fit_probe(features[rows], labels[rows], [groups[i] for i in rows], 3, seed=0)
    np.testing.assert_allclose(copied.logits(features), once.logits(features), atol=0.02)
    alone = [str(i) for i in range(len(rows))]
    unlike = fit_probe(features[rows], labels[rows], alone, 3, seed=0)
    assert np.abs(unlike.logits(features) - once.logits(features)).max() > 0.5


def test_unseen_groups_choose_the_penalty() -> None:
    """Where groups scatter, weak penalties learn groups by heart; single tiles would choose one."""
    features, labels, groups = tiles(spread=1.5, noise=0.05)
    grouped = fit_probe(features, labels, groups, 3, seed=0)
    alone = fit_probe(features, labels, [str(i) for i in range(len(labels))], 3, seed=0)
    assert grouped.penalty > alone.penalty
    assert grouped.fold_loss > alone.fold_loss


def test_fold_loss_is_what_unseen_groups_cost() -> None:
    features, labels, groups = tiles(groups=60, spread=0.4)
    probe = fit_probe(features, labels, groups, 3, seed=0)
    new_features, new_labels, _ = tiles(groups=60, spread=0.4)
    loss = F.cross_entropy(
        torch.from_numpy(probe.logits(new_features)), torch.from_numpy(new_labels)
    )
    assert float(loss) < probe.fold_loss < 1.0


def test_unseen_logits_are_of_a_probe_that_did_not_see_the_group() -> None:
    """The probe of all rows knows labels by heart that the features cannot tell."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(90), 2)
    features = rng.normal(size=(90, 300)).astype(np.float32)[names]  # by group, of no class
    labels = (names % 3).astype(np.int64)
    probe = fit_probe(features, labels, [f"g{n}" for n in names], 3, seed=0)
    assert probe.unseen_logits.shape == (180, 3)
    assert probe.unseen_logits.dtype == np.float32
    assert (probe.logits(features).argmax(1) == labels).mean() > 0.99
    assert (probe.unseen_logits.argmax(1) == labels).mean() < 0.5


def test_a_class_may_be_found_in_mixed_groups_only() -> None:
    """As where every patient with normal tissue has a tumour too."""
    features, labels, groups = tiles()
    patients = [f"p{int(group[1:]) // 3}" for group in groups]  # each holds all three classes
    probe = fit_probe(features, labels, patients, 3, seed=0)
    assert probe.fold_loss is not None
    assert probe.unseen_logits.any(axis=1).all()


@pytest.mark.parametrize(
    "held",
    [
        {"N": 10, "A": 10, "S": 1, "NS": 1},
        {"A": 1, "AN": 1, "N": 1},
        {"NS": 1, "AS": 1, "N": 1, "A": 1},
        {"N": 6, "A": 5, "S": 2, "NA": 3, "AS": 1, "NAS": 1},
    ],
)
def test_every_probe_of_a_fold_has_seen_all_classes(held: dict[str, int]) -> None:
    """A probe that never saw a class would tell the student that its tiles are not of it."""
    groups = [f"{of}{n}" for of, count in held.items() for n in range(count)]
    rows = [(group, label) for group in groups for label in group.rstrip("0123456789")]
    labels = np.array(["NAS".index(label) for _, label in rows], np.int64)
    fold_of, folds = _deal(labels, [group for group, _ in rows], seed=0)
    assert folds >= 2
    of_group = {group: fold for (group, _), fold in zip(rows, fold_of, strict=True)}
    assert [of_group[group] for group, _ in rows] == fold_of.tolist()
    for fold in range(folds):
        assert set(labels[fold_of != fold]) == set(labels)


def test_groups_that_cannot_be_dealt_make_no_folds() -> None:
    """A class with one group; three groups of two classes each, of which one fold gets two."""
    labels = np.array([0, 1, 2, 2], np.int64)
    assert _deal(labels, ["one", "one", "other", "third"], seed=0)[1] == 0
    labels = np.array([0, 1, 1, 2, 0, 2], np.int64)
    assert _deal(labels, ["one", "one", "other", "other", "third", "third"], seed=0)[1] == 0


def test_few_groups_make_fewer_folds_and_one_none() -> None:
    features, labels, groups = tiles(groups=6)  # two groups a class
    assert fit_probe(features, labels, groups, 3, seed=0).fold_loss is not None
    features, labels, groups = tiles(groups=3)
    probe = fit_probe(features, labels, groups, 3, seed=0)
    assert probe.fold_loss is None
    assert probe.unseen_logits is None
    assert probe.penalty == PENALTIES[len(PENALTIES) // 2]
    assert FOLDS == 5


def test_the_same_rows_give_the_same_bits_and_a_constant_feature_no_nan() -> None:
    features, labels, groups = tiles()
    features[:, 3] = 5.0
    probes = [fit_probe(features, labels, groups, 3, seed=1) for _ in range(2)]
    assert np.array_equal(probes[0].weight, probes[1].weight)
    assert np.isfinite(probes[0].weight).all()
    assert (probes[0].logits(features).argmax(1) == labels).mean() == pytest.approx(1, abs=0.2)
