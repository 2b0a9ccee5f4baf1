"""What the plain loops learn: images and masks with their momentum, begun as the package does."""

from torch import Tensor

from dam_lightning import Condenser
from tests.reference import dm

__all__ = ["Learned"]


class Learned:
    """Images and, with DAM, masks, with the SGD that updates them.

    Args:
        module: whose initial values, step sizes and weight of the domain loss these are.

    Attributes:
        start: the images before the first step.
        images: (M, C, H, W).
        logits: of the masks, or None.
        weight: of the domain loss.
        temperature: of the masks.
    """

    def __init__(self, module: Condenser) -> None:
        self.images = self.start = module.images.detach()
        self.logits: Tensor | None = None
        self.weight, self.temperature = 0.0, 1.0
        if module.dam is not None:
            self.logits = module.dam.logits.detach()
            self.weight, self.temperature = module.dam.weight, module.dam.temperature
        self._rates = {"images": module.lr_images, "logits": module.lr_masks}
        self._momentum = module.momentum
        self._buffers: dict[str, Tensor] = {}

    def update(self, grad_images: Tensor, grad_logits: Tensor | None) -> None:
        """One step of SGD."""
        self.images = self.updated("images", self.images, grad_images, self._rates["images"])
        if self.logits is not None:
            assert grad_logits is not None
            self.logits = self.updated("logits", self.logits, grad_logits, self._rates["logits"])

    def updated(self, name: str, value: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """A value after a step of SGD; its momentum is kept under a name."""
        value, self._buffers[name] = dm.sgd_momentum(
            value, gradient, self._buffers.get(name), rate, self._momentum
        )
        return value
