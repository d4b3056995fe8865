"""Class names: what people write is accepted, what cannot be seen or told apart is not."""

import unicodedata

import pytest

from edgelung.core.class_names import MAX_CLASSES, check_class_names, composed


@pytest.mark.parametrize(
    "names",
    [
        ["lung_aca", "lung_n", "lung_scc"],
        ["Adenocarcinoma, lepidic-predominant (grade 2)", "Benign tissue"],
        ["Drüsengewebe", "Plattenepithel", "Übergang"],
        ["肺癌", "正常", "肺\u3000組織"],
        ["опухоль", "норма", "край"],
        ["TNF-α", "TNF-a", "β-catenin"],
        ["grade 1", "grade I", "grade l"],
        ["سليم", "ورم"],
        ["0", "1"],
        [str(i) for i in range(MAX_CLASSES)],
    ],
    ids=lambda names: ascii(names[0]),
)
def test_names_that_people_write_are_accepted(names: list[str]) -> None:
    check_class_names(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a\u200bb", "c"], r"holds U\+200B"),
        (["a\u2028b", "c"], r"holds U\+2028"),
        (["a\ufe0f", "c"], r"holds U\+FE0F"),
        (["a\u00a0b", "c"], r"holds U\+00A0"),
        (["a\tb", "c"], r"holds U\+0009"),
        (["\u2066a", "c"], r"holds U\+2066"),
        (["a\U000e0041", "c"], r"holds U\+E0041"),
        (["", "c"], "is empty"),
        (["a" * 129, "c"], "has 129 characters; expected at most 128"),
        ([unicodedata.normalize("NFD", "é"), "c"], "NFC"),
        (["\u0421", "C"], "look alike"),
        (["\ufb01", "fi"], "look alike"),
        (["a b", "a  b"], "look alike"),
        (["Benign", "benign"], "look alike"),
        ([str(i) for i in range(MAX_CLASSES + 1)], "257 classes"),
    ],
)
def test_names_that_deceive_are_refused_and_shown_in_ascii(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_class_names(names)
    assert str(error.value).isascii()


def test_decomposed_names_of_macos_are_composed() -> None:
    assert composed("Dru\u0308se") == "Drüse"
    check_class_names([composed("Dru\u0308se"), "b"])
