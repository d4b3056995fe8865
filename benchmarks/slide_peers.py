"""Runs another program on a slide, inside that program's own environment.

    python slide_peers.py wsinfer    SLIDES_FOLDER OUT --model M --coordinates C --reader R
    python slide_peers.py tiatoolbox SLIDE         OUT --model M --coordinates C

M: folder of `slide_model.py`. C: JSON with the upper left corners of the tiles, their side, and the
size of the slide, in pixels of level 0. The last line of the output is JSON: seconds of start-up.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

START = time.perf_counter()  # the interpreter's own start, about 20 ms, is not counted
BATCH = 32  # WSInfer's default
MASK_FACTOR = 32  # pixels of level 0 per pixel of TIAToolbox's mask


def wsinfer(options: argparse.Namespace, given: dict) -> float:
    """`wsinfer run` with patch files that are already there; returns the seconds of start-up."""
    import wsinfer_zoo.client

    # Its command line reads the registry of the model zoo from the network, whatever is asked for.
    wsinfer_zoo.client.load_registry = lambda: wsinfer_zoo.client.ModelRegistry(models={})
    import numpy as np
    from wsinfer.cli.cli import cli
    from wsinfer.patchlib import save_hdf5

    started = time.perf_counter() - START
    (slide,) = options.slide.iterdir()
    for folder in ("patches", "masks"):
        (options.out / folder).mkdir(parents=True)
    config = json.loads((options.model / "config.json").read_text())
    save_hdf5(
        path=options.out / "patches" / f"{slide.stem}.h5",
        coords=np.array(given["corners"]),
        patch_size=given["side"],
        patch_spacing_um_px=config["spacing_um_px"],
    )
    (options.out / "masks" / f"{slide.stem}.jpg").touch()  # both files there: it makes none
    words = ["--backend", options.reader, "run", "--wsi-dir", options.slide]
    words += ["--results-dir", options.out, "--config", options.model / "config.json"]
    words += ["--model-path", options.model / "torchscript_model.pt"]
    words += ["--batch-size", BATCH, "--num-workers", 1]  # as by default on one core
    cli([str(word) for word in words], standalone_mode=False)
    return started


def tiatoolbox(options: argparse.Namespace, given: dict) -> float:
    """PatchPredictor in its mode for slides; returns the seconds of start-up."""
    import numpy as np
    import torch
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
    from tiatoolbox.models.engine.patch_predictor import PatchPredictor
    from tiatoolbox.models.models_abc import ModelABC

    started = time.perf_counter() - START
    config = json.loads((options.model / "config.json").read_text())
    normalize = next(one for one in config["transform"] if one["name"] == "Normalize")
    mean, std = (
        torch.tensor(normalize["arguments"][key]).reshape(1, 3, 1, 1) for key in ("mean", "std")
    )

    class Starter(ModelABC):
        """The program; it normalises whole batches, which is cheaper than tile by tile."""

        def __init__(self) -> None:
            super().__init__()
            self.program = torch.jit.load(options.model / "torchscript_model.pt", "cpu")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.program(images), -1)

        @staticmethod
        def infer_batch(
            model: torch.nn.Module, batch_data: torch.Tensor, *, device: str
        ) -> np.ndarray:
            images = (batch_data.permute(0, 3, 1, 2).float() / 255 - mean) / std
            with torch.inference_mode():
                return model(images.contiguous()).numpy()

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return image.argmax(axis=-1)

    model = Starter()
    model.class_dict = dict(enumerate(config["class_names"]))
    size = config["patch_size_pixels"]
    predictor = PatchPredictor(model=model, batch_size=BATCH, num_workers=0, device="cpu")
    predictor.run(
        [options.slide],
        masks=[tissue_mask(given)],
        patch_mode=False,
        save_dir=options.out,
        overwrite=True,
        output_type="zarr",
        ioconfig=IOPatchPredictorConfig(
            input_resolutions=[{"units": "mpp", "resolution": config["spacing_um_px"]}],
            patch_input_shape=(size, size),
            stride_shape=(size, size),
        ),
        return_probabilities=True,
    )
    return started


def tissue_mask(given: dict):
    """True on the rectangle of the tiles, less a quarter of a tile at each edge: TIAToolbox takes
    every tile that touches the mask."""
    import numpy as np

    corners, side = np.array(given["corners"]), given["side"]
    height, width = (-(-given[key] // MASK_FACTOR) for key in ("height", "width"))
    mask = np.zeros((height, width), np.uint8)
    first = -(-(corners.min(0) + side // 4) // MASK_FACTOR)
    last = (corners.max(0) + side - side // 4) // MASK_FACTOR
    mask[first[1] : last[1], first[0] : last[0]] = 1
    return mask


def read_zarr(path: Path) -> dict:
    """Corners and probabilities that TIAToolbox wrote."""
    import zarr

    group = zarr.open(path, mode="r")
    names = {"coordinates": "corners", "probabilities": "probabilities"}
    return {name: group[key][:].tolist() for key, name in names.items()}


def main() -> None:
    """Run one program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("program", choices=("wsinfer", "tiatoolbox", "read-zarr"))
    parser.add_argument("slide", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--coordinates", type=Path)
    parser.add_argument("--reader", default="openslide")
    options = parser.parse_args()
    if options.program == "read-zarr":
        options.out.write_text(json.dumps(read_zarr(options.slide)))
        return
    given = json.loads(options.coordinates.read_text())
    run = {"wsinfer": wsinfer, "tiatoolbox": tiatoolbox}[options.program]
    started = run(options, given)
    sys.stdout.flush()
    os.write(1, f"\n{json.dumps({'startup_seconds': round(started, 2)})}\n".encode())


if __name__ == "__main__":
    main()
