"""Whether a bundle is what its card says: the card against itself, and against the model."""

from appliance.inference.models import Bundle
from appliance.inference.port import Backend
from appliance.inference.preparation import Preparation
from appliance.inference.serving import agree, decoder_of
from appliance.inference.vetting import Tensors, look

__all__ = ["Tensors", "check", "look"]


def check(bundle: Bundle, backend: Backend) -> None:
    """ModelError where the card contradicts itself or the model."""
    card = bundle.card
    Preparation(card.inputs)
    decoder_of(bundle)
    found = look(bundle.model, backend)
    agree(bundle.folder, "inputs", card.inputs, found.inputs)
    agree(bundle.folder, "outputs", card.outputs, found.outputs)
