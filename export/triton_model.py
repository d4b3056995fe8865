"""edgelung as a model of Triton's Python backend. Research use only: not for diagnosis.

In: `images`, the bytes of image files. Out: what `edgelung infer` writes into the row of each file.
The bundle lies beside this file. It is opened as everywhere: hashes, trusted keys and golden tiles
are checked before the model is ready.

`edgelung export --triton` writes this file. It needs edgelung in the Python of the backend.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import edgelung

pb_utils = importlib.import_module("triton_python_backend_utils")  # the backend brings it
BUNDLE = "bundle"


class TritonPythonModel:
    """What the backend loads: one instance, which uses all cores or the GPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle and prove the engine. Raises TritonModelException with the reason."""
        config = json.loads(args["model_config"])
        options = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        try:
            self._classifier = self._load(folder, options)
        except KeyError as error:
            raise pb_utils.TritonModelException(
                f"config.pbtxt has no parameter {error}; run `edgelung export --triton` again"
            ) from error
        except edgelung.EdgelungError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Predict the images of all requests together: the batch that Triton has formed."""
        batches = [
            pb_utils.get_input_tensor_by_name(request, "images").as_numpy().reshape(-1).tolist()
            for request in requests
        ]
        images = [image for batch in batches for image in batch]
        predictions = self._classifier.classify(images)
        return [self._response(list(islice(predictions, len(batch)))) for batch in batches]

    def finalize(self) -> None:
        """Release the runtime."""
        self._classifier.close()

    def _load(self, folder: Path, options: Mapping[str, str]) -> "edgelung.Classifier":
        if options["unknown"] not in ("mark", "keep"):
            raise edgelung.EdgelungError(
                f"the parameter unknown is {options['unknown']!r}; expected mark or keep"
            )
        classifier = edgelung.load(
            folder,
            engine=_unless_auto(options["engine"]),
            precision=_unless_auto(options["precision"]),
            keep_unknown=options["unknown"] == "keep",
        )
        if classifier.bundle.sha256 == options["bundle"]:
            return classifier
        classifier.close()
        raise edgelung.EdgelungError(
            f"{folder} is not the bundle that config.pbtxt was written for; expected SHA-256 "
            f"{options['bundle']} of its bundle.json. Run `edgelung export --triton` again"
        )

    def _response(self, predictions: Sequence["edgelung.Prediction"]) -> Any:
        """The tensors of one request, (N, …). Without a prediction: '' and NaN, and stage 0."""
        classes = len(self._classifier.classes)
        none = (math.nan,) * classes
        tensors: list[tuple[str, type, int, list[Any]]] = [
            ("label", np.object_, 1, [p.label or "" for p in predictions]),
            ("status", np.object_, 1, [str(p.status) for p in predictions]),
            ("error", np.object_, 1, [p.error for p in predictions]),
            ("probs", np.float32, classes, [p.probabilities or none for p in predictions]),
            ("ood", np.float32, 1, [math.nan if p.ood is None else p.ood for p in predictions]),
            ("stage", np.uint8, 1, [p.stage or 0 for p in predictions]),
        ]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.array(values, kind).reshape(len(predictions), width))
                for name, kind, width, values in tensors
            ]
        )


def _unless_auto(value: str) -> str | None:
    return None if value == "auto" else value
