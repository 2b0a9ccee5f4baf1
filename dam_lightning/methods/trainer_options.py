"""What a Trainer may not be set to for a condensation, and why."""

from lightning.fabric.utilities.exceptions import MisconfigurationException

__all__ = ["check_trainer_options"]

_PRECISIONS = ("32-true", "bf16-mixed", "64-true")
_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
_SHARDED = ("fsdp", "deepspeed", "modelparallel")


def check_trainer_options(
    precision: object,
    strategy: object,
    accumulate_grad_batches: int,
    max_steps: int,
    max_epochs: int | None = None,
    limit_train_batches: float | None = None,
) -> None:
    """Refuse settings that would change the method, or cannot work with it.

    Args:
        precision: as the Trainer takes it.
        strategy: a strategy, or its name.
        accumulate_grad_batches: as the Trainer takes it.
        max_steps: as the Trainer takes it; -1 for no limit.
        max_epochs: as ``max_steps``; an epoch is ``steps_per_epoch`` of the data module.
        limit_train_batches: as the Trainer takes it; a share of an epoch, or a number of steps.

    Raises:
        MisconfigurationException: naming the setting, the reason and the remedy.
    """
    if max_steps < -1 or max_steps == 0:
        raise MisconfigurationException(
            f"max_steps must be at least 1, got {max_steps}: it is the number of image updates"
        )
    # With these two Lightning ends the fit before it begins, as if all were well.
    for name, value in (("max_epochs", max_epochs), ("limit_train_batches", limit_train_batches)):
        if value == 0:
            raise MisconfigurationException(
                f"{name} must not be 0: nothing would be condensed; leave it out, max_steps is the "
                "number of image updates"
            )
    if accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"accumulate_grad_batches must be 1, got {accumulate_grad_batches}: a step is one "
            "image update on fresh draws; to save memory, lower max_images, which leaves the "
            "gradient as it is"
        )
    named = _ALIASES.get(str(precision), precision)
    if named not in _PRECISIONS:
        raise MisconfigurationException(
            f"precision must be one of {', '.join(_PRECISIONS)}, got {precision}: images and "
            "their gradients are too fine for half precision"
        )
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if any(word in name.lower().replace("_", "") for word in _SHARDED):
        raise MisconfigurationException(
            f"strategy {name} cannot condense: it cuts parameters into shards, which does not "
            "work with the second-order gradients of condensation, and the images are too few to "
            "need it; use ddp"
        )
