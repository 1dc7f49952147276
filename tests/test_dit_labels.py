"""Finding a class by what a person types. No ComfyUI needed."""

from __future__ import annotations

import pytest

from speca.dit.labels import NULL_LABEL, UnknownClassError, imagenet_classes, numbered, parse_labels

EMOJI = ("grinning face", "red heart", "man, woman", "7", "Heart", "heart")


def imagenet(text: str) -> list[int]:
    return parse_labels(text, imagenet_classes(), 1000)


def test_imagenet_has_its_thousand_classes_in_order() -> None:
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    # the classes that the DiT authors show in their own samples
    shown = {207: "golden retriever", 360: "otter", 387: "lesser panda", 974: "geyser", 88: "macaw", 979: "valley"}
    assert {label: names[label] for label in shown} == shown
    assert (names[0], names[999]) == ("tench", "toilet tissue")


def test_every_entry_of_the_list_is_understood() -> None:
    assert [imagenet(entry) for entry in numbered(imagenet_classes())] == [[label] for label in range(1000)]


def test_every_name_is_understood() -> None:
    assert [imagenet(name) for name in imagenet_classes()] == [[label] for label in range(1000)]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("207", [207]),
        ("207, 88, golden retriever", [207, 88, 207]),
        (" Golden Retriever ;macaw\n88,", [207, 88, 88]),
        ("207: golden retriever, 0", [207, 0]),
        ("Cardigan, cardigan", [264, 474]),  # a dog and a garment
        ("88, null, NONE", [88, NULL_LABEL, NULL_LABEL]),
    ],
)
def test_lists(text: str, labels: list[int]) -> None:
    assert imagenet(text) == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("red heart", [1]),
        ("man, woman", [2]),  # one name alone may contain a comma
        ("7", [3]),  # a name before a number
        ("0, 4", [0, 4]),
        ("Heart, heart", [4, 5]),
    ],
)
def test_a_model_with_names_of_its_own(text: str, labels: list[int]) -> None:
    assert parse_labels(text, EMOJI, len(EMOJI)) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No class was given. Type a number from 0 to 999 or a name such as 'tench'"),
        (" , ", "No class was given"),
        ("1000", "no class 1000: this model's classes are numbered 0 to 999"),
        ("-3", "no class -3"),
        ("golden retreiver", r"Near it are: golden retriever \(207\)"),
        ("retriever", r"golden retriever \(207\)"),
        ("207: macaw", "Class 207 of this model is 'golden retriever', not 'macaw'"),
        ("CARDIGAN", r"is the name of 2 classes. Type the number: 264 \(Cardigan\) or 474 \(cardigan\)"),
        ("xqzzy", "'xqzzy' is not a class of this model. Type a number from 0 to 999"),
    ],
)
def test_what_cannot_be_understood_is_told_what_to_type(text: str, message: str) -> None:
    with pytest.raises(UnknownClassError, match=message):
        imagenet(text)


def test_a_model_without_names_takes_numbers() -> None:
    assert parse_labels("3, null", None, 10) == [3, NULL_LABEL]
    with pytest.raises(UnknownClassError, match=r"does not name its classes\. Type a number from 0 to 9"):
        parse_labels("otter", None, 10)
    with pytest.raises(UnknownClassError, match="numbered 0 to 9"):
        parse_labels("10", None, 10)
