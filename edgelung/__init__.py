"""edgelung: from labelled lung-histology tiles to a verified low-latency classifier.

    with edgelung.load("bundle") as classifier:       # without an argument: the starter
        for prediction in classifier.classify(["a.jpg", array, image]):
            print(prediction.label, prediction.confidence)

    edgelung.infer_folder("tiles/", out="rows.parquet")
    edgelung.evaluate("tiles/", groups="groups.csv").everything.figures
    edgelung.open_run("runs/first").predictions

Everything is loaded when it is first used: `import edgelung` imports no runtime. The commands are
listed by `edgelung --help`. Research use only.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgelung.api import (
        Classifier,
        EdgelungError,
        Evaluation,
        ImageInput,
        Prediction,
        Predictions,
        Run,
        Summary,
        evaluate,
        infer_folder,
        load,
        open_run,
        read_predictions,
        to_records,
    )

__all__ = [
    "RESEARCH_USE_ONLY",
    "Classifier",
    "EdgelungError",
    "Evaluation",
    "ImageInput",
    "Prediction",
    "Predictions",
    "Run",
    "Summary",
    "__version__",
    "evaluate",
    "infer_folder",
    "load",
    "open_run",
    "read_predictions",
    "to_records",
]

__version__ = "0.2.0"
RESEARCH_USE_ONLY = "Research use only: not a medical device, not for diagnosis."


def __getattr__(name: str) -> object:
    """Load a name of the API when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgelung import api

    value: object = getattr(api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
