"""What each part of training from scratch brings: one student a variant, one teacher for all.

    python benchmarks/ablation.py RUN tiles/ --groups tiles/clusters.csv --out ablation/

RUN is a finished run of recipe `quick` on these tiles and groups; its teacher teaches every student
here, so a variant differs from the first in the fields it names and in nothing else. To be cheap
the students are trained for few epochs and on windows only, which costs some accuracy on the whole
tiles that they are tested on. The table and the JSON
grow by one variant at a time; what they hold already is kept, what is trained is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

EDGELUNG = Path(sys.executable).with_name("edgelung")
REFERENCE = "recipe quick"
NO_GUIDANCE = "distill.guidance=0"
VARIANTS: dict[str, tuple[str, ...]] = {
    REFERENCE: (),
    "no guidance": (NO_GUIDANCE,),
    "no guidance, hard": (NO_GUIDANCE, "distill.mode=hard"),
    "no teacher: labels alone": (NO_GUIDANCE, "distill.mode=none"),
    "timm's initialisation": ("student.init=timm",),
    "AdamW": ("student.optimizer=adamw", "student.lr=1e-3"),
    "no colour augmentation": ("augment.stain=0", "augment.light=0"),
    "stronger stain augmentation": ("augment.stain=0.35",),
    "mixup 0.8": ("student.mixup=0.8",),
    "crops of 0.6 to 1.25 of the side": ("augment.scale=[0.6, 1.25]",),
}


def main() -> None:
    """Train what is missing; after each variant compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    default = Path(__file__).parent / "results" / "ablation.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    for seed in options.seeds:
        for name in options.only:
            folder = options.out / f"{list(VARIANTS).index(name)}-{seed}"
            train(folder, VARIANTS[name], seed, options)
            record(options.json, name, seed, folder, options)
            show(options.json)


def train(folder: Path, settings: tuple[str, ...], seed: int, options: argparse.Namespace) -> None:
    """One student of the run's teacher; goes on with what a killed one left."""
    if (folder / "metrics.json").is_file():
        return
    words: list[object] = [EDGELUNG, "train", options.data, "--out", folder]
    if (folder / "run.json").is_file():
        words.append("--resume")
    else:
        teacher = (options.run / "teacher" / "model.safetensors").absolute()
        fixed = (
            f"student.epochs={options.epochs}",
            f"student.low_epochs={options.epochs}",
            "teacher.epochs=0",
            f"teacher.weights={teacher}",
            f"seed={seed}",  # of weights and batches; the split has its own, which stays
        )
        words += ["--recipe", "quick", "--groups", options.groups]
        for text in (*fixed, *settings):
            words += ["--set", text]
    print("$", *words, flush=True)
    subprocess.run([*map(str, words)], check=True)


def record(path: Path, name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Put one trained student's figures into the JSON, against the reference of its seed."""
    result = json.loads(path.read_text()) if path.is_file() else {"variants": {}}
    metrics = json.loads((folder / "metrics.json").read_text())["student"]
    history = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    entry: dict[str, Any] = {
        "epochs": options.epochs,
        "val": metrics["val"]["balanced_accuracy"],
        "test": metrics["test"]["balanced_accuracy"],
        "test_interval": metrics["test"]["intervals"]["balanced_accuracy"],
        "seconds": sum(r["seconds"] for r in history if r["stage"] == "student"),
        "machine": machine.describe(),
    }
    reference = options.out / f"0-{seed}"
    if name != REFERENCE and (reference / "metrics.json").is_file():
        words = [EDGELUNG, "compare", reference, folder, "--json"]
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
        last = json.loads(done.stdout)["models"][-1]
        entry["difference"] = last["difference"]
        entry["difference_interval"] = last["difference_interval"]
    variant = result["variants"].setdefault(name, {"settings": VARIANTS[name], "seeds": {}})
    variant["seeds"][str(seed)] = entry
    path.write_text(json.dumps(result, indent=2) + "\n")


def show(path: Path) -> None:
    """The table so far."""
    table = Table("student", "seed", "validation", "test", "95 %", "difference (95 %)", "minutes")
    for name, variant in json.loads(path.read_text())["variants"].items():
        for seed, entry in variant["seeds"].items():
            low, high = entry["test_interval"]
            change = ""
            if "difference" in entry:
                least, most = entry["difference_interval"]
                change = f"{100 * entry['difference']:+.1f}"
                change += f" ({100 * least:+.1f} … {100 * most:+.1f})"
            figures = (f"{100 * entry[key]:.1f}" for key in ("val", "test"))
            interval = f"{100 * low:.1f} – {100 * high:.1f}"
            minutes = f"{entry['seconds'] / 60:.0f}"
            table.add_row(name, seed, *figures, interval, change, minutes)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
