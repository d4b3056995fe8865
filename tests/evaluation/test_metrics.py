"""Metrics follow scikit-learn's definitions; expected values were computed by hand."""

import numpy as np
import pytest

from edgelung.evaluation.metrics import (
    TEMPERATURES,
    agreement,
    at_temperature,
    classification_metrics,
    confusion_matrix,
    evaluate,
    expected_calibration_error,
    fit_temperature,
    roc_auc,
)


def test_rows_of_the_confusion_matrix_are_the_true_classes() -> None:
    truth, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    assert confusion_matrix(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_metrics_of_a_known_matrix_are_right() -> None:
    # class 0: recall 8/10, precision 8/9; class 1: recall 4/5, precision 4/6
    metrics = classification_metrics(np.array([[8, 2], [1, 4]]))
    assert metrics.accuracy == pytest.approx(12 / 15)
    assert metrics.recall == pytest.approx([0.8, 0.8])
    assert metrics.precision == pytest.approx([8 / 9, 4 / 6])
    assert metrics.f1 == pytest.approx([16 / 19, 8 / 11])
    assert metrics.balanced_accuracy == pytest.approx(0.8)
    assert metrics.macro_f1 == pytest.approx((16 / 19 + 8 / 11) / 2)


def test_classes_without_tiles_are_left_out_of_averages() -> None:
    metrics = classification_metrics(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 4]]))
    assert metrics.balanced_accuracy == pytest.approx((0.75 + 1) / 2)
    assert metrics.recall[1] is None


def test_without_tiles_the_metrics_are_none() -> None:
    metrics = classification_metrics(np.zeros((2, 2), np.int64))
    assert metrics.accuracy is None
    assert metrics.balanced_accuracy is None


def test_the_calibration_error_adds_up_over_two_bins() -> None:
    # ten tiles at confidence 0.8, half right; ten at 0.6, six right: (10·0.3 + 10·0)/20
    probabilities = np.array([[0.8, 0.2]] * 10 + [[0.6, 0.4]] * 10)
    truth = np.array([0] * 5 + [1] * 5 + [0] * 6 + [1] * 4)
    assert expected_calibration_error(probabilities, truth) == pytest.approx(0.15)
    # Overconfidence in one bin does not cancel underconfidence in another.
    truth = np.array([0] * 5 + [1] * 5 + [0] * 9 + [1] * 1)
    assert expected_calibration_error(probabilities, truth) == pytest.approx(0.3)


def test_temperature_recovers_a_known_scale() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(3.0 * logits, truth) == pytest.approx(3.0, rel=0.05)


def test_the_temperature_has_a_lower_bound_if_every_tile_is_right() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 4
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) == pytest.approx(TEMPERATURES[0], 1e-3)


def test_agreement_counts_labels_and_the_largest_difference() -> None:
    first = np.array([[0.9, 0.1], [0.4, 0.6]])
    second = np.array([[0.8, 0.2], [0.7, 0.3]])
    result = agreement(first, second)
    assert result.agreement == 0.5
    assert result.max_probability_difference == pytest.approx(0.3)


def test_evaluate_combines_labels_and_likelihood() -> None:
    metrics = evaluate(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
    assert metrics.accuracy == 1
    assert metrics.negative_log_likelihood == pytest.approx(-np.log([0.9, 0.8]).mean())


def test_area_under_the_curve_counts_ordered_pairs() -> None:
    truth = np.array([0, 0, 1, 1])
    scores = np.array([0.9, 0.4, 0.4, 0.1])  # of class 0: three pairs in order, one tied
    assert roc_auc(np.stack([scores, 1 - scores], axis=1), truth) == pytest.approx(3.5 / 4)
    perfect = np.eye(3)[[0, 1, 2, 2]]
    assert roc_auc(perfect, np.array([0, 1, 2, 2])) == 1
    assert roc_auc(perfect, np.array([0, 0, 0, 0])) is None  # one class: no pairs


def test_a_temperature_divides_the_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3))
    plain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cooled = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(axis=1, keepdims=True)
    assert at_temperature(plain, 0.5) == pytest.approx(cooled)
