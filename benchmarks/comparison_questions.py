"""What is compared: the method's open points, each with its base and what is tried in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["QUESTIONS", "Question", "Variant", "questions"]

QUESTIONS = ("window", "masks", "mask_lr", "augmentation", "scope", "labels", "gain")
"""Names of the questions, in the order in which they are answered."""


@dataclass(frozen=True)
class Variant:
    """One way to do it.

    Attributes:
        name: in tables.
        options: what differs from the base, by names as on the command line, without dashes.
        baseline: the real images that are trained on in place of condensed ones, as `Evaluation`
            has them in ``condensed``; None: condensed ones.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None


@dataclass(frozen=True)
class Question:
    """Variants that are compared with a base.

    Attributes:
        name: on the command line.
        text: the question.
        base: what the others are compared with. Its options change nothing: they are what the
            base must have, so that it is what its name says.
        others: the variants.
    """

    name: str
    text: str
    base: Variant
    others: tuple[Variant, ...]


_RANDOM = {"data.pseudo_labels": "random"}


def questions(lr_images: float) -> dict[str, Question]:
    """All questions by name.

    Args:
        lr_images: step size of the images, of which the masks' is a multiple.
    """
    listed = (
        Question(
            "window",
            "Which window of low frequencies makes the pseudo-domains?",
            _window("half_width", 0.1),
            (
                _window("half_width", 0.01),
                _window("half_width", 0.05),
                _window("half_width", 0.2),
                _window("area", 0.1),
            ),
        ),
        Question(
            "masks",
            "How do masks begin?",
            Variant("constant 0.01", {"model.dam.init": "constant", "model.dam.init_value": 0.01}),
            tuple(
                Variant(
                    f"normal, std {std}", {"model.dam.init": "normal", "model.dam.init_value": std}
                )
                for std in (0.01, 0.1)
            ),
        ),
        Question(
            "mask_lr",
            "Which step size do masks need?",
            Variant("as the images", {"model.lr_masks": None}),
            tuple(
                Variant(f"x {factor:g}", {"model.lr_masks": factor * lr_images})
                for factor in (0.1, 10.0, 100.0)
            ),
        ),
        Question(
            "augmentation",
            "Are images augmented in the domain loss too?",
            Variant("yes", {"model.augment_views": True}),
            (Variant("no", {"model.augment_views": False}),),
        ),
        Question(
            "scope",
            "Are images sorted all together, or class by class?",
            Variant("global", {"data.pseudo_scope": "global"}),
            (Variant("class", {"data.pseudo_scope": "class"}),),
        ),
        Question(
            "labels",
            "What are pseudo-domains made of?",
            Variant("fft", {"data.pseudo_labels": "fft"}),
            (
                Variant("random", _RANDOM),
                Variant("random, one-hot masks", {**_RANDOM, "model.dam.init": "one_hot"}),
                Variant("log-variance", {"data.pseudo_labels": "log_variance"}),
                Variant("actual", {"data.pseudo_labels": "actual"}),
            ),
        ),
        Question(
            "gain",
            "Does DAM help, beyond its further views and beyond a coreset?",
            Variant("with DAM"),
            (
                Variant("without DAM", {"model.dam": None}),
                Variant("with DAM, random labels", _RANDOM),
                Variant("herding", baseline="herding"),
                Variant("k-center", baseline="k_center"),
                Variant("random real images", baseline="random"),
            ),
        ),
    )
    return {question.name: question for question in listed}


def _window(kind: str, ratio: float) -> Variant:
    return Variant(
        f"{kind} {ratio}".replace("_", " "), {"data.fft_window": kind, "data.fft_ratio": ratio}
    )
