"""The gate: a variant against full precision on the same tiles, which calibrated neither."""

from typing import Any

import numpy as np

from edgelung.evidence.metrics import Floats, Labels, agreement, evaluate

# What a variant may lose against full precision; fractions.
LIMITS = {
    "min_agreement": 0.99,
    "min_relative_balanced_accuracy": 0.99,
    "max_recall_drop": 0.01,
    "max_calibration_error_rise": 0.01,
}
ROUNDING = 1e-9
# With fewer tiles in a class one flipped tile exceeds the limit, and none proves nothing.
MIN_TILES_PER_CLASS = round(1 / LIMITS["max_recall_drop"])


def gate(variant: Floats, reference: Floats, truth: Labels) -> dict[str, Any]:
    """Compare probabilities (N, classes) of a variant and of full precision, paired by tile.

    The verdict is 'pass', 'fail' (with the reasons) or 'inconclusive' (too few tiles to tell);
    only 'pass' lets `auto` choose the variant. Point estimates; no intervals yet.
    """
    if not np.isfinite(variant).all():
        reasons = ["some probabilities are not finite"]
        return {"tiles": len(truth), "limits": LIMITS, "verdict": "fail", "reasons": reasons}
    ours, theirs = evaluate(variant, truth), evaluate(reference, truth)
    paired = agreement(variant, reference)
    counts = np.bincount(truth, minlength=reference.shape[1])
    result: dict[str, Any] = {
        "tiles": len(truth),
        "limits": LIMITS,
        **paired,
        "balanced_accuracy": ours["balanced_accuracy"],
        "reference_balanced_accuracy": theirs["balanced_accuracy"],
        "expected_calibration_error": ours["expected_calibration_error"],
        "reference_expected_calibration_error": theirs["expected_calibration_error"],
    }
    if counts.min() < MIN_TILES_PER_CLASS:
        reason = (
            f"{int(counts.min())} gate tiles in the smallest class; "
            f"at least {MIN_TILES_PER_CLASS} are needed"
        )
        return result | {"verdict": "inconclusive", "reasons": [reason]}

    drops = [a - b for a, b in zip(theirs["recall"], ours["recall"], strict=True)]
    relative = ours["balanced_accuracy"] / max(theirs["balanced_accuracy"], 1e-12)
    rise = ours["expected_calibration_error"] - theirs["expected_calibration_error"]
    result |= {"recall_drop": drops, "calibration_error_rise": rise}
    checks = [
        ("agreement", paired["agreement"], ">=", LIMITS["min_agreement"]),
        (
            "relative balanced accuracy",
            relative,
            ">=",
            LIMITS["min_relative_balanced_accuracy"],
        ),
        ("largest recall drop", max(drops), "<=", LIMITS["max_recall_drop"]),
        ("calibration error rise", rise, "<=", LIMITS["max_calibration_error_rise"]),
    ]
    reasons = [
        f"{what} {value:.4f}, allowed {sign} {limit}"
        for what, value, sign, limit in checks
        if not (value >= limit - ROUNDING if sign == ">=" else value <= limit + ROUNDING)
    ]
    return result | {"verdict": "fail" if reasons else "pass", "reasons": reasons}
