"""What computes on this box, by its configuration: the models, what runs them, and on which devices."""

from pathlib import Path
from typing import TYPE_CHECKING

from appliance import plugins
from appliance.config.schema import Config

if TYPE_CHECKING:
    from appliance.inference import engine
    from appliance.inference.choice import Choice
    from appliance.inference.engine import Find
    from appliance.inference.library import Library
    from appliance.inference.models import Bundle
    from appliance.inference.policy import Terms
    from appliance.inference.port import Backend
    from hardware.accelerators import Accelerator

COMPILED = "compiled"  # a folder


def detector_choice(config: Config) -> "Choice":
    """The models that `detect.model` stands for, one after the other."""
    from appliance.inference import engine
    from appliance.inference.choice import Choice

    def opened(bundle: "Bundle") -> "engine.Engine":
        backend = inference_backend(config, bundle.card.backend)
        return engine.reconstructor(bundle, backend, inference_terms(config), devices_for(backend))

    return Choice(library(config), config.detect.model, opened)


def detector_folder(config: Config) -> Path:
    """The bundle that `detect.model` names. ModelError where the library has none of that name."""
    return detector_choice(config).chosen()


def library(config: Config) -> "Library":
    """The models of this box, the shipped one among them."""
    from appliance.inference import models
    from appliance.inference.library import FOLDER, Library

    return Library(config.paths.state / FOLDER, models.shipped())


def inference_backend(config: Config, name: str = "") -> "Backend":
    """The one that a bundle's card names, else the configuration's."""
    plugin = plugins.load("appliance.inference.backends", name or config.detect.backend)
    backend: Backend = plugin.create(plugin.Settings())
    return backend


def inference_terms(config: Config) -> "Terms":
    from appliance.inference.policy import Terms

    settings = config.detect
    return Terms(
        devices=(settings.device,) if isinstance(settings.device, str) else tuple(settings.device),
        policy=settings.policy,
        isolate="all" if settings.isolate else "accelerators",
        deadline_s=settings.deadline_ms / 1000,
        blobs=config.paths.state / COMPILED,
        blobs_bytes=settings.compiled_mb << 20,
    )


def devices_for(backend: "Backend") -> "Find":
    """Asks this machine for its devices. A driver that hangs or crashes when it is asked does so in another process."""
    from appliance.inference.isolated.workers import Workers
    from hardware import accelerators

    def find() -> "list[Accelerator]":
        workers = Workers()
        try:
            return accelerators.find(workers.asking(backend))
        finally:
            workers.close()

    return find
