"""Judging training sets: fresh networks trained on them and tested on real images."""

from dam_lightning.evaluation.accuracy import Accuracy, Figure, Scores
from dam_lightning.evaluation.coresets import Selection, SelectionOptions
from dam_lightning.evaluation.evaluator import Evaluator, evaluate
from dam_lightning.evaluation.module import Evaluation
from dam_lightning.evaluation.recipe import BackboneOptions, Recipe, RecipeOptions
from dam_lightning.evaluation.training import train_network

__all__ = [
    "Accuracy",
    "BackboneOptions",
    "Evaluation",
    "Evaluator",
    "Figure",
    "Recipe",
    "RecipeOptions",
    "Scores",
    "Selection",
    "SelectionOptions",
    "evaluate",
    "train_network",
]
