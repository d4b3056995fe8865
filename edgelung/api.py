"""The Python API: what `import edgelung` offers, loaded when it is first used.

    with edgelung.load("bundle") as classifier:
        for prediction in classifier.classify(["a.jpg", array, image]):
            print(prediction.label, prediction.confidence)

    edgelung.infer_folder("tiles/", out="rows.parquet")
    edgelung.evaluate("tiles/", groups="groups.csv").everything.figures
    edgelung.open_run("runs/first").predictions

The commands call the same functions of the rooms below. Nothing is printed; progress, notes and
warnings go to the logger `edgelung`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.evaluation import Evaluation
from edgelung.artifacts.opened_run import Run, to_records
from edgelung.artifacts.predictions import Prediction, Predictions, read_predictions
from edgelung.artifacts.summary import Summary
from edgelung.artifacts.trust import choose_trust
from edgelung.classifier import Classifier, ImageInput, PathInput, check_count
from edgelung.core.choice import E, parse_choice
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.choose import open_engine
from edgelung.engines.names import EngineName
from edgelung.evaluation.requirements import parse_requirement
from edgelung.inference import session
from edgelung.inference.destination import Destination
from edgelung.inference.evaluate import Site, evaluate_site
from edgelung.inference.source import Source

__all__ = [
    "Classifier",
    "EdgelungError",
    "Evaluation",
    "ImageInput",
    "Prediction",
    "Predictions",
    "Run",
    "Summary",
    "evaluate",
    "infer_folder",
    "load",
    "open_run",
    "read_predictions",
    "to_records",
]


def load(
    bundle: PathInput | None = None,
    *,
    engine: EngineName | str | None = None,
    precision: Precision | str | None = None,
    threads: int | None = None,
    keep_unknown: bool = False,
    coverage: float | None = None,
    trust: PathInput | None = None,
    allow_unsigned: bool = False,
) -> Classifier:
    """Open a bundle and load its model, ready to classify tiles.

    Every file of the bundle is checked against its hash, and the engine has to reproduce the
    bundle's golden tiles, before anything is classified. Research use only.

        with edgelung.load("bundles/first") as classifier:
            for prediction in classifier.classify(["a.jpg", "b.png"]):
                print(prediction.path, prediction.label, prediction.confidence)

    Args:
        bundle: folder that `edgelung export` wrote. None: the starter, a model for trying it out.
        engine: 'openvino', 'onnxruntime', 'tensorrt', 'tensorrt-rtx', 'onnxruntime-cuda' or
            'onnxruntime-tensorrt'. None: the fastest on a GPU, else the first that works on the
            CPU. A named engine is what runs, or an error says why it cannot.
        precision: the variant of the bundle: 'fp32', 'fp16', 'int8', 'int8-fp16', 'fp8',
            'int8-early-exit' or 'fp16-early-exit'. None: the preferred one for the engine of those
            that passed their gate.
        threads: CPU threads. None: all cores that this process may use.
        keep_unknown: label tiles unlike the training tiles, and tiles without tissue, like others.
            False: they get the status 'unknown' or 'blank' and no label.
        coverage: predictions get the set of the classes that cannot be excluded, such as 0.99.
        trust: a public key (PEM) or a folder of them, one of which has to have signed the bundle.
            None: the keys of edgelung.toml; without any, every bundle is opened.
        allow_unsigned: open it even if it is unsigned or signed by another key.

    Returns:
        A classifier. Close it, or use it in a `with` statement, to release the runtime.

    Raises:
        EdgelungError: if the bundle is damaged or not trusted, or cannot run as asked.
    """
    engine_name = _member(EngineName, "engine", engine)
    precision_name = _member(Precision, "precision", precision)
    check_count("threads", threads)
    folder = Path(bundle) if bundle is not None else starter_bundle()
    opened = open_bundle(folder, choose_trust(trust, allow_unsigned))
    options = session.Options(keep_unknown=keep_unknown, coverage=coverage)
    session.check_coverage(opened, coverage)
    chosen = open_engine(opened, engine_name, precision_name, threads)
    return Classifier(opened, chosen, session.label_rule(opened, chosen.variant, options))


def infer_folder(
    folder: PathInput | Sequence[PathInput],
    out: PathInput,
    *,
    model: PathInput | None = None,
    files: PathInput | None = None,
    subset: str | None = None,
    engine: EngineName | str | None = None,
    precision: Precision | str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    min_confidence: float | None = None,
    strict_size: bool = False,
    keep_unknown: bool = False,
    coverage: float | None = None,
    follow_links: bool = False,
    verify: bool = False,
    resume: bool | None = None,
    trust: PathInput | None = None,
    allow_unsigned: bool = False,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Predict every tile of a folder, one row per file, as `edgelung infer` does.

    Writes the rows and their summary (`<out>.summary.json`); a stopped run leaves a journal and can
    be continued. Read the rows with `edgelung.read_predictions`. Research use only.

    Args:
        folder: folder of tiles, searched with all folders below; or several.
        out: file for the rows: .csv, .jsonl or .parquet.
        model: bundle that `edgelung export` wrote. None: the starter.
        files: predict only the files of this list: a path per line, or a CSV with a column path.
        subset: with `files`: only rows of this subset, such as 'test'.
        engine, precision, threads: as for `edgelung.load`.
        batch_size: tiles per batch. None: 16, on a GPU 32.
        min_confidence: 0…1; less confident rows get the status 'review' and no label.
        strict_size: tiles of sizes far from the training tiles get 'other-size' and no label.
        keep_unknown, coverage: as for `edgelung.load`.
        follow_links: follow links that lead out of the folder; else each is a row 'skipped'.
        verify: run full precision on every tile as well, and compare.
        resume: True continues a stopped run, False discards its rows, None refuses to do either.
        trust, allow_unsigned: as for `edgelung.load`.
        on_rows: called with the number of rows done since the last call.

    Returns:
        The summary: counts, speed, what ran, and `exit_code`: 3 if some files failed.

    Raises EdgelungError if the folder, the list, the bundle or the output cannot be used.
    """
    check_count("batch_size", batch_size)
    check_count("threads", threads)
    folders = map(Path, [folder] if isinstance(folder, str | os.PathLike) else folder)
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise EdgelungError(f"min_confidence is {min_confidence}; expected 0…1")
    options = session.Options(
        engine=_member(EngineName, "engine", engine),
        precision=_member(Precision, "precision", precision),
        batch_size=batch_size,
        threads=threads,
        verify=verify,
        min_confidence=min_confidence,
        strict_size=strict_size,
        keep_unknown=keep_unknown,
        coverage=coverage,
    )
    return session.infer_folder(
        Source(tuple(folders), None if files is None else Path(files), subset, follow_links),
        open_bundle(
            Path(model) if model is not None else starter_bundle(),
            choose_trust(trust, allow_unsigned),
        ),
        Destination.parse(Path(out)),
        options,
        resume=resume,
        on_rows=on_rows,
    )


def evaluate(
    tiles: PathInput,
    *,
    model: PathInput | None = None,
    groups: PathInput | None = None,
    by: Sequence[str] = (),
    require: Sequence[str] = (),
    engine: EngineName | str | None = None,
    precision: Precision | str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    follow_links: bool = False,
    trust: PathInput | None = None,
    allow_unsigned: bool = False,
) -> Evaluation:
    """Measure a bundle on labelled tiles, as `edgelung evaluate` does; nothing is written.

        site = edgelung.evaluate("tiles/", model="bundles/first", groups="groups.csv", by=["site"])
        site.everything.figures.balanced_accuracy, site.by["site"]["B"].figures

    Args:
        tiles: folder with a folder of tiles per class.
        model: bundle that `edgelung export` wrote. None: the starter.
        groups: CSV with the columns path and group. None: no interval is over groups.
        by: columns of this CSV, such as 'site'; each of their values gets figures of its own.
        require: figures to reach, such as 'balanced_accuracy=0.95'; see `exit_code` of the result.
        engine, precision, threads, trust, allow_unsigned: as for `edgelung.load`.
        batch_size, follow_links: as for `edgelung.infer_folder`.

    Returns:
        Figures with intervals over groups; those of the bundle's own test beside them.

    Raises:
        EdgelungError: if the tiles, the CSV, a column, a requirement or the bundle cannot be used.
    """
    check_count("batch_size", batch_size)
    check_count("threads", threads)
    try:
        required = [parse_requirement(text) for text in require]
    except ValueError as error:
        raise EdgelungError(f"require: {error}") from error
    opened = open_bundle(
        Path(model) if model is not None else starter_bundle(),
        choose_trust(trust, allow_unsigned),
    )
    options = session.Options(
        engine=_member(EngineName, "engine", engine),
        precision=_member(Precision, "precision", precision),
        batch_size=batch_size,
        threads=threads,
    )
    site = Site(Path(tiles), None if groups is None else Path(groups), tuple(by), follow_links)
    return evaluate_site(site, opened, options, required).result


def open_run(path: PathInput) -> Run:
    """Open a run folder that `edgelung train` wrote, to read what is in it.

        run = edgelung.open_run("runs/first")
        run.metrics.student.test.balanced_accuracy
        pandas.DataFrame(run.predictions.to_records())
        pandas.DataFrame(edgelung.to_records(run.history))

    Args:
        path: the run folder; the run may still be going on.

    Returns:
        An object with `config`, `split`, `history`, `metrics` and `predictions`, each read when it
        is first used.

    Raises:
        EdgelungError: if the folder is not a run; later, if a file in it is missing or damaged.
    """
    return Run(Path(path))


def _member(kind: type[E], what: str, value: str | None) -> E | None:
    """Return the member of an enum by its value; None for None and 'auto'."""
    try:
        return None if value is None else parse_choice(kind, value)
    except ValueError as error:
        raise EdgelungError(f"{what} {error}") from error
