"""Makes an environment for each program that `slides.py` compares with edgelung.

All packages are pinned and installed without their own requirements: WSInfer 0.6.1 works with
numpy 1, zarr 2 and tiffslide 2.4 alone but does not say so, and TIAToolbox 2.1.3 asks for a hundred
packages that its PatchPredictor never imports.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WSINFER = """
wsinfer==0.6.1 wsinfer-zoo==0.6.3 tiffslide==2.4.0 openslide-python==1.4.7 openslide-bin==4.0.1.2
numpy==1.26.4 zarr==2.18.7 numcodecs==0.15.2 asciitree==1.0.0 fasteners==0.20 deprecated==1.3.1
wrapt==2.5.2 tifffile==2024.9.20 imagecodecs==2024.12.30 h5py==3.16.0 pandas==2.3.3 pytz==2026.6
python-dateutil==4.0.0 tzdata==2026.6 six==1.17.0 pillow==13.0.0 scikit-image==0.26.0 scipy==1.17.1
networkx==3.6.1 lazy-loader==0.6 imageio==2.38.1 packaging==26.4 shapely==2.2.0
opencv-python-headless==4.11.0.86 tqdm==4.70.1 click==8.5.1 tabulate==0.10.0 jsonschema==4.26.0
jsonschema-specifications==2025.9.1 referencing==0.37.0 rpds-py==2026.9.1 attrs==26.1.0
huggingface-hub==1.23.0 httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 anyio==4.16.0 idna==3.20
certifi==2026.10.19.post1 filelock==4.3.1 fsspec==2026.9.0 pyyaml==6.0.4 typing-extensions==4.16.0
"""
TIATOOLBOX = """
tiatoolbox==2.1.3 openslide-python==1.4.3 openslide-bin==4.0.1.2 numpy==2.4.3 zarr==3.1.6
numcodecs==0.16.6 donfig==0.8.1.post1 google-crc32c==1.9.0 dask==2026.8.0 cloudpickle==3.1.3
toolz==1.2.0 partd==1.4.2 locket==1.0.0 importlib-metadata==8.7.0 zipp==4.1.2
universal-pathlib==0.3.10 pathlib-abc==0.5.2 fsspec==2026.9.0 tifffile==2026.2.24
imagecodecs==2026.1.14 opencv-python-headless==4.14.0.94 pillow==13.0.0 scikit-image==0.26.0
scipy==1.17.1 networkx==3.6.1 lazy-loader==0.6 imageio==2.38.1 shapely==2.2.0 simpleitk==2.5.7
defusedxml==0.7.1 pandas==2.3.3 pytz==2026.6 python-dateutil==4.0.0 tzdata==2026.6 six==1.17.0
matplotlib==3.11.2 contourpy==1.3.3 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1
pyparsing==3.3.3 psutil==7.2.2 joblib==1.6.0 scikit-learn==1.9.1 narwhals==2.29.0
threadpoolctl==3.8.0 umap-learn==0.5.12 pynndescent==0.7.0 numba==0.68.1 llvmlite==0.50.0
transformers==5.14.0 tokenizers==0.22.2 safetensors==0.8.0 regex==2026.11.19 timm==1.0.27
huggingface-hub==1.23.0 httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 anyio==4.16.0 idna==3.20
certifi==2026.10.19.post1 requests==2.34.2 charset-normalizer==3.5.3 urllib3==2.8.0 tqdm==4.70.1
filelock==4.3.1 click==8.5.1 packaging==26.4 pyyaml==6.0.4 typing-extensions==4.16.0
"""
PINS = {"wsinfer": WSINFER.split(), "tiatoolbox": TIATOOLBOX.split()}
SHOWN = ("wsinfer", "tiatoolbox", "tiffslide", "openslide-python", "openslide-bin", "numpy", "zarr")
STAMP = "benchmark.json"  # what an environment was made from

# What torch and torchvision need, by name → the files and folders in site-packages.
FIND_TORCH = """
import json, re, torch, torchvision
from importlib.metadata import PackageNotFoundError, distribution
todo, found = ["torch", "torchvision"], {}
while todo:
    name = todo.pop()
    try:
        one = distribution(name)
    except PackageNotFoundError:
        continue
    if name in found:
        continue
    names = {path.parts[0] for path in one.files or ()} - {"..", "__pycache__", "bin"}
    found[name] = sorted(str(one.locate_file(part)) for part in names)
    for line in one.requires or ():
        if "extra ==" not in line:
            todo.append(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"))
print(json.dumps(found))
"""


def make_environment(program: str, folder: Path, torch_from: str | None) -> Path:
    """The Python of an environment that holds a program; made where it is missing.

    Args:
        program: a key of PINS.
        folder: environments lie in it.
        torch_from: a Python whose torch is linked instead of installing one.
    """
    place = folder / program
    python = place / "bin" / "python"
    content = json.dumps([PINS[program], torch_from])
    stamp = {"made_from": hashlib.sha256(content.encode()).hexdigest()}
    if not (place / STAMP).exists() or json.loads((place / STAMP).read_text()) != stamp:
        print(f"making the environment of {program}", flush=True)
        subprocess.run([torch_from or sys.executable, "-m", "venv", "--clear", place], check=True)
        _install(python, ["--no-deps", *PINS[program]])
        if torch_from:
            _link_torch(python, torch_from)
        else:
            _install(python, ["torch", "torchvision"])
        (place / STAMP).write_text(json.dumps(stamp))
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of the packages that matter, by name."""
    code = "import json, sys; from importlib import metadata; print(json.dumps({one: "
    code += "metadata.version(one) for one in sys.argv[1:]}))"
    program = python.parents[1].name
    names = [name for name in SHOWN if any(pin.startswith(f"{name}==") for pin in PINS[program])]
    done = subprocess.run(
        [python, "-c", code, *names, "torch"], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _install(python: Path, words: Sequence[str]) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)


def _link_torch(python: Path, torch_from: str) -> None:
    """Link torch and what it needs from another environment; what is there already stays."""
    done = subprocess.run(
        [torch_from, "-c", FIND_TORCH], capture_output=True, text=True, check=True
    )
    (site,) = (python.parents[1] / "lib").glob("python3*/site-packages")
    pinned = {pin.partition("==")[0] for pin in PINS[python.parents[1].name]}
    for name, paths in json.loads(done.stdout).items():
        if name in pinned:
            continue
        for path in map(Path, paths):
            link = site / path.name
            if path.exists() and not link.exists():
                link.symlink_to(path)
