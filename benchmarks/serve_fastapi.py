"""The service that benchmarks/serve.py compares with: FastAPI and PyTorch as tutorials write it.

One image per request, decoded by Pillow in the endpoint, one forward pass each. DeiT-tiny with
random weights, since only the speed is measured.
"""

import io

import timm
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.transforms import v2

CLASSES = ("lung_aca", "lung_n", "lung_scc")
model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=len(CLASSES)).eval()
transform = v2.Compose(
    [
        v2.Resize((224, 224)),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, object]:
    """Predict one image."""
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.inference_mode():
        probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)[0].tolist()
    label = CLASSES[probabilities.index(max(probabilities))]
    return {"label": label, "probabilities": dict(zip(CLASSES, probabilities, strict=True))}
