"""The service that benchmarks/serve.py compares with: LitServe as its own examples write it.

    python serve_litserve.py PORT

`decode_request` reads the image of a form with Pillow, `predict` runs the network in PyTorch (FP32)
on the batch that LitServe has formed. One worker, as LitServe starts on a CPU. DeiT-tiny with
random weights, since only the speed is measured.
"""

import sys
from typing import Any

import litserve
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

CLASSES = ("lung_aca", "lung_n", "lung_scc")


class Classifier(litserve.LitAPI):
    """What LitServe calls."""

    def setup(self, device: str) -> None:
        """Load the network in the worker."""
        name = "deit_tiny_distilled_patch16_224"
        self.model = timm.create_model(name, num_classes=len(CLASSES)).eval().to(device)
        self.transform = v2.Compose(
            [
                v2.Resize((224, 224)),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads the type
        """One image of a form."""
        tensor: torch.Tensor = self.transform(Image.open(request["file"].file).convert("RGB"))
        return tensor

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Images of several requests."""
        return torch.stack(list(inputs))

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        """Probabilities, (N, classes)."""
        with torch.inference_mode():
            probabilities: torch.Tensor = self.model(batch).softmax(dim=1)
        return probabilities

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        """The answer to one request."""
        values = output.tolist()
        label = CLASSES[values.index(max(values))]
        return {"label": label, "probabilities": dict(zip(CLASSES, values, strict=True))}


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=16, batch_timeout=0.01), accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
