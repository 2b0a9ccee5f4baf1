"""What a person sees of a run: progress, pictures, a final evaluation and a closing table."""

from dam_lightning.callbacks.checkpoint import LastCheckpoint
from dam_lightning.callbacks.final_evaluation import FinalEvaluation
from dam_lightning.callbacks.picture import CondensedPicture, MaskPictures, PseudoDomainPicture
from dam_lightning.callbacks.progress import StepProgress
from dam_lightning.callbacks.signals import SignalsBetweenSteps
from dam_lightning.callbacks.summary import RunSummary

__all__ = [
    "CondensedPicture",
    "FinalEvaluation",
    "LastCheckpoint",
    "MaskPictures",
    "PseudoDomainPicture",
    "RunSummary",
    "SignalsBetweenSteps",
    "StepProgress",
]
