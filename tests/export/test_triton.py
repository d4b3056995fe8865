"""The model repository for Triton: what is in it, that Triton's schema reads it, what runs in it.

`test_triton_server.py` runs it in a real server. Here the starter is exported, which needs no
training, and the Python backend's own module is a stand-in.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from services import serving

import edgelung
from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.artifacts.manifest import Target
from edgelung.artifacts.onnx_wire import read_graph
from edgelung.artifacts.trust import choose_trust
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.export.triton import (
    FILES_MODEL,
    TILES_MODEL,
    tiles_config,
    write_triton_repository,
)
from edgelung.export.triton_config import MAX_BATCH, quoted
from edgelung.tiles.reader import decode_tile

TISSUE = Path(__file__).parents[2] / "examples" / "tissue"
TYPES = {"TYPE_UINT8": 2, "TYPE_FP32": 1}  # Triton's names → ONNX's numbers


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return open_bundle(starter_bundle())


@pytest.fixture(scope="module")
def repository(starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_triton_repository(folder, starter, None)
    return folder


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own schema of config.pbtxt, without the gRPC that its package imports."""
    client = pytest.importorskip("tritonclient", reason="pip install 'tritonclient[http]'")
    path = Path(client.__file__).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(schema: ModuleType, text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def with_early_exit(bundle: Bundle) -> Bundle:
    """The bundle with a preferred variant of two graphs."""
    int8 = bundle.variants[Precision.INT8]
    more = {
        Precision.FP16: replace(int8, precision=Precision.FP16),
        Precision.INT8_EARLY_EXIT: replace(
            int8, precision=Precision.INT8_EARLY_EXIT, second=int8.graph
        ),
        Precision.FP16_EARLY_EXIT: replace(
            int8, precision=Precision.FP16_EARLY_EXIT, second=int8.graph
        ),
    }
    return replace(bundle, variants=bundle.variants | more)


def test_each_model_has_its_config_and_one_version(repository: Path) -> None:
    found = {str(path.relative_to(repository)) for path in repository.glob("*/*")}
    assert found == {
        *(f"{FILES_MODEL}/{name}" for name in ("1", "config.pbtxt", "warmup")),
        *(f"{TILES_MODEL}/{name}" for name in ("1", "config.pbtxt", "labels.txt")),
    }


def test_the_copied_bundle_opens_with_all_checks(repository: Path, starter: Bundle) -> None:
    copied = open_bundle(repository / FILES_MODEL / "1" / "bundle")
    assert copied.sha256 == starter.sha256
    assert copied.files == starter.files
    assert copied.signature.is_trusted  # the starter, by its hash


def test_a_signature_is_copied_with_the_bundle(starter: Bundle, tmp_path: Path) -> None:
    signed = replace(starter, files=replace(starter.files, signature=b"signed"))
    write_triton_repository(tmp_path / "models", signed, None)
    assert (tmp_path / "models/edgelung/1/bundle/bundle.sig").read_bytes() == b"signed"


def test_a_bundle_that_changes_after_it_was_opened_gives_no_repository(
    starter: Bundle, tmp_path: Path
) -> None:
    digests = {**starter.files.digests, "golden/00.jpeg": "0" * 64}
    changed = replace(starter, files=replace(starter.files, digests=digests))
    with pytest.raises(EdgelungError, match="was changed after the bundle was opened"):
        write_triton_repository(tmp_path / "models", changed, None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("model", [FILES_MODEL, TILES_MODEL])
def test_the_configs_are_those_that_tritons_schema_has_read(
    model: str, repository: Path, starter: Bundle
) -> None:
    """After a change: run the tests below with tritonclient, then copy the new files here.

    What differs from starter to starter, its hash and the limit of its score, is not compared.
    """
    variant = starter.variant(Precision.INT8)
    assert variant.entry.known is not None
    written = (repository / model / "config.pbtxt").read_text()
    for of_starter in (starter.sha256, repr(variant.entry.known.threshold)):
        written = written.replace(of_starter, "…")
    assert written == (Path(__file__).parent / "triton" / f"{model}.pbtxt").read_text("utf-8")


def test_tritons_schema_reads_the_config_of_the_graph(
    repository: Path, schema: ModuleType, starter: Bundle
) -> None:
    config = parse(schema, (repository / TILES_MODEL / "config.pbtxt").read_text())
    graph = read_graph((repository / TILES_MODEL / "1" / "model.onnx").read_bytes())
    assert (config.name, config.backend) == (TILES_MODEL, "onnxruntime")
    assert config.max_batch_size == MAX_BATCH
    assert config.HasField("dynamic_batching")
    for declared, values in ((config.input, graph.inputs), (config.output, graph.outputs)):
        assert [tensor.name for tensor in declared] == [value.name for value in values]
        for tensor, value in zip(declared, values, strict=True):
            # What the model sees behind the batch: `reshape`, where there is one.
            seen = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            assert tuple(seen) == value.shape[1:]
            assert int(np.prod(tensor.dims)) == int(np.prod(value.shape[1:] or (1,)))
            assert TYPES[schema.DataType.Name(tensor.data_type)] == value.type
    assert config.output[0].label_filename == "labels.txt"
    labels = (repository / TILES_MODEL / "labels.txt").read_text("utf-8").splitlines()
    assert tuple(labels) == starter.classes


def test_tritons_schema_reads_the_config_of_the_python_model(
    repository: Path, schema: ModuleType, starter: Bundle
) -> None:
    config = parse(schema, (repository / FILES_MODEL / "config.pbtxt").read_text())
    assert (config.name, config.backend) == (FILES_MODEL, "python")
    assert [(t.name, list(t.dims)) for t in config.input] == [("images", [1])]
    assert {t.name: list(t.dims) for t in config.output} == {
        "label": [1],
        "status": [1],
        "error": [1],
        "probs": [len(starter.classes)],
        "ood": [1],
        "stage": [1],
    }
    assert config.parameters["bundle"].string_value == starter.sha256
    (warmup,) = config.model_warmup
    data = repository / FILES_MODEL / "warmup" / warmup.inputs["images"].input_data_file
    length, image = data.read_bytes()[:4], data.read_bytes()[4:]
    assert int.from_bytes(length, "little") == len(image)
    size = starter.reader.size
    assert decode_tile(image, starter.reader).shape == (size, size, 3)


@pytest.mark.parametrize("model", [FILES_MODEL, TILES_MODEL])
def test_edgelung_serve_has_the_same_models(
    model: str, repository: Path, schema: ModuleType
) -> None:
    config = parse(schema, (repository / model / "config.pbtxt").read_text())
    with serving() as service:
        described = service.ask("GET", f"/v2/models/{model}").json
    for declared, tensors in (
        (config.input, described["inputs"]),
        (config.output, described["outputs"]),
    ):
        assert tensors == [
            {
                "name": tensor.name,
                "datatype": schema.DataType.Name(tensor.data_type)
                .removeprefix("TYPE_")
                .replace("STRING", "BYTES"),
                "shape": [-1, *tensor.dims],
            }
            for tensor in declared
        ]


def test_a_variant_for_gpus_is_placed_on_one(starter: Bundle, schema: ModuleType) -> None:
    int8 = starter.variants[Precision.INT8]
    config = parse(schema, tiles_config(starter, int8, int8.graph.read()))
    assert schema.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == "KIND_CPU"
    half = replace(int8, precision=Precision.FP16)
    config = parse(schema, tiles_config(starter, half, int8.graph.read()))
    assert schema.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == "KIND_GPU"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_back_from_a_config(text: str) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    message = text_format.Parse(f"value: {quoted(text)}", wrappers.StringValue())
    assert message.value == text
    assert quoted(text).isascii()


def test_the_graph_of_the_tiles_model_reproduces_the_golden_tiles(
    repository: Path, starter: Bundle
) -> None:
    """In ONNX Runtime here; no Triton with this backend has run it."""
    graph = GraphBytes((repository / TILES_MODEL / "1" / "model.onnx").read_bytes())
    tiles = np.stack([decode_tile(tile.file.read(), starter.reader) for tile in starter.golden])
    engine = OnnxRuntimeEngine(graph, 1)
    output = engine.infer(tiles)
    engine.close()
    expected = np.array([tile.probabilities[Precision.INT8] for tile in starter.golden])
    assert np.abs(output.probabilities - expected).max() <= Precision.INT8.about.golden_tolerance
    assert output.ood is not None


def test_a_variant_of_two_graphs_is_replaced_by_one_of_one(starter: Bundle, tmp_path: Path) -> None:
    bundle = with_early_exit(starter)
    for number, precision in enumerate((None, Precision.INT8_EARLY_EXIT)):
        out = tmp_path / str(number)
        assert write_triton_repository(out, bundle, precision).precision == Precision.INT8
        config = (out / FILES_MODEL / "config.pbtxt").read_text()
        assert f'"{precision or "auto"}"' in config


def test_the_variant_of_a_target_is_taken_unless_another_is_asked_for(
    starter: Bundle, tmp_path: Path
) -> None:
    target = Target(
        variant="fp32", reached=True, latency_ms=20.0, tiles_per_second=None, measured={}
    )
    bundle = with_early_exit(starter)
    bundle = replace(bundle, manifest=structs.replace(bundle.manifest, target=target))
    for precision, expected in (
        (None, Precision.FP32),
        (Precision.INT8, Precision.INT8),
        (Precision.INT8_EARLY_EXIT, Precision.INT8),
        (Precision.FP16_EARLY_EXIT, Precision.FP16),
    ):
        out = tmp_path / str(precision)
        assert write_triton_repository(out, bundle, precision).precision == expected


def test_a_variant_that_did_not_pass_its_gate_is_used_only_if_asked_for(
    starter: Bundle, tmp_path: Path
) -> None:
    int8 = starter.variants[Precision.INT8]
    gate = structs.replace(int8.entry.gate, verdict="inconclusive")
    failed = replace(int8, entry=structs.replace(int8.entry, gate=gate))
    bundle = replace(starter, variants={**starter.variants, Precision.INT8: failed})
    auto = write_triton_repository(tmp_path / "auto", bundle, None)
    asked = write_triton_repository(tmp_path / "asked", bundle, Precision.INT8)
    assert (auto.precision, asked.precision) == (Precision.FP32, Precision.INT8)


# What runs in the Python backend.


class TritonModelException(Exception):
    pass


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


def backend() -> ModuleType:
    """A stand-in for `triton_python_backend_utils`: only what model.py calls."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.TritonModelException = TritonModelException
    module.Tensor = Tensor
    module.InferenceResponse = lambda tensors: {tensor.name: tensor.array for tensor in tensors}
    module.get_input_tensor_by_name = lambda request, name: request[name]
    return module


Load = Callable[..., Any]


@pytest.fixture
def load(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load the written model.py as the backend does; parameters replace those of the config."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend())
    path = repository / FILES_MODEL / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = []

    def start(**changes: str) -> Any:
        parameters = {"engine": "onnxruntime", "precision": "auto", "unknown": "mark"}
        parameters |= {"bundle": open_bundle(starter_bundle()).sha256} | changes
        config = {"parameters": {k: {"string_value": v} for k, v in parameters.items()}}
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(repository / FILES_MODEL),
                "model_version": "1",
            }
        )
        loaded.append(model)
        return model

    yield start
    for model in loaded:
        model.finalize()


def request(*images: bytes) -> dict[str, Tensor]:
    array = np.array([[image] for image in images], np.object_).reshape(len(images), 1)
    return {"images": Tensor("images", array)}


def test_the_answers_are_the_rows_of_infer(load: Load, tmp_path: Path) -> None:
    paths = sorted(TISSUE.glob("*.jpeg"))
    edgelung.infer_folder(TISSUE, tmp_path / "rows.jsonl", engine="onnxruntime")
    rows = edgelung.read_predictions(tmp_path / "rows.jsonl").rows
    (answer,) = load().execute([request(*(path.read_bytes() for path in paths))])
    assert [row.path for row in rows] == [path.name for path in paths]
    assert [status for (status,) in answer["status"]] == [row.status for row in rows]
    assert [label for (label,) in answer["label"]] == [row.label or "" for row in rows]
    assert [error for (error,) in answer["error"]] == [row.error for row in rows]
    for probabilities, (ood,), row in zip(answer["probs"], answer["ood"], rows, strict=True):
        if row.probabilities is None:
            assert np.isnan(probabilities).all()
            assert np.isnan(ood)
        else:
            np.testing.assert_allclose(probabilities, row.probabilities, atol=1e-6)
            assert ood == pytest.approx(row.ood, abs=1e-5)
    assert answer["probs"].dtype == answer["ood"].dtype == np.float32
    assert answer["stage"].dtype == np.uint8


def test_each_request_of_a_batch_gets_its_own_answers(load: Load) -> None:
    good, cut = (TISSUE / "normal.jpeg").read_bytes(), (TISSUE / "cut.jpeg").read_bytes()
    answers = load().execute([request(good), request(cut, b""), request(), request(good)])
    assert [answer["status"].tolist() for answer in answers] == [
        [["ok"]],
        [["truncated"], ["empty"]],
        [],
        [["ok"]],
    ]
    assert all(answer["probs"].shape == (len(answer["status"]), 3) for answer in answers)
    np.testing.assert_allclose(answers[0]["probs"], answers[3]["probs"], atol=1e-6)


def test_another_bundle_than_that_of_the_config_is_not_served(load: Load) -> None:
    with pytest.raises(TritonModelException, match="is not the bundle that config"):
        load(bundle="0" * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "holds no fp8 variant"),
        ({"engine": "tensorrt"}, "no engine can run"),
        ({"precision": "best"}, "precision 'best' is unknown"),
        ({"unknown": "kep"}, "unknown is 'kep'; expected mark or keep"),
    ],
)
def test_what_cannot_run_is_an_error_of_the_model_with_its_reason(
    load: Load, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(TritonModelException, match=message):
        load(**changes)


# The command.


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'tritonclient'): sys.modules[name] = None\n"
        "from edgelung.cli import main; main()"
    )
    words = ["export", str(starter_bundle()), "--triton", str(tmp_path / "models")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "model edgelung for image files (precision auto)" in done.stderr
    assert "Research use only" in done.stderr
    assert {path.name for path in (tmp_path / "models").iterdir()} == {FILES_MODEL, TILES_MODEL}


def test_a_run_gives_the_signed_bundle_and_its_repository(run: Path, tmp_path: Path, cli) -> None:
    assert cli("keygen", tmp_path / "lab").returncode == 0
    words = ["export", run, "--out", "bundle", "--sign", tmp_path / "lab.key.pem"]
    done = cli(*words, "--triton", "models")
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "models" / FILES_MODEL / "1" / "bundle"
    signature = (tmp_path / "bundle" / "bundle.sig").read_bytes()
    assert (copied / "bundle.sig").read_bytes() == signature
    opened = open_bundle(copied, choose_trust(tmp_path / "lab.pub.pem"))
    assert opened.sha256 == open_bundle(tmp_path / "bundle").sha256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["STARTER"], "is a finished bundle; expected a run folder, or --triton"),
        (["STARTER", "--triton", "m", "--int8"], "--int8 makes a bundle from a run"),
        (["STARTER", "--triton", "m", "--out", "b"], "--out makes a bundle from a run"),
        (["STARTER", "--triton", "m", "--precision", "fp8"], "holds no fp8 variant"),
        (["STARTER", "--triton", "STARTER/models"], "must not be in each other"),
        (["run", "--out", "m/bundle", "--triton", "m"], "must not be in each other"),
        (["STARTER", "--triton", "full"], "already exists"),
        (["run", "--out", "b", "--precision", "int8"], "--precision is for the models of --triton"),
        (["run", "--out", "b", "--trust", "k"], "--trust is about a finished bundle"),
        (["run", "--triton", "m"], "run is no finished bundle"),
        (["run"], "missing option '--out'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    words: list[str], message: str, tmp_path: Path, cli
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = [word.replace("STARTER", str(starter_bundle())) for word in words]
    done = cli("export", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "m").exists()


def test_a_bundle_that_nobody_trusted_signed_is_refused(
    starter: Bundle, tmp_path: Path, cli
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(starter.folder, folder)
    manifest = folder / "bundle.json"
    content = manifest.read_text("utf-8").replace('"notice": "', '"notice": "Changed. ', 1)
    manifest.write_text(content, "utf-8")
    digest = hashlib.sha256(content.encode()).hexdigest()
    (folder / "bundle.json.sha256").write_text(f"{digest}  bundle.json\n")
    assert cli("keygen", tmp_path / "lab").returncode == 0
    words = ["export", folder, "--triton", tmp_path / "m", "--trust", tmp_path / "lab.pub.pem"]
    refused = cli(*words)
    assert refused.returncode == 2
    assert "is not signed" in refused.stderr
    assert not (tmp_path / "m").exists()
    assert cli(*words, "--allow-unsigned").returncode == 0


def test_a_damaged_bundle_is_refused(starter: Bundle, tmp_path: Path, cli) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(starter.folder, folder)
    with (folder / "model.int8.onnx").open("r+b") as file:
        file.write(b"\0")
    done = cli("export", folder, "--triton", tmp_path / "m")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert not (tmp_path / "m").exists()
