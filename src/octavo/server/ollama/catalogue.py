"""What Ollama's clients are told of the model that is served."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from octavo.server.ollama.answers import NEVER, ModelDetails, RunningModel, ShowResponse, TaggedModel, timestamp
from octavo.server.service import Service

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel


def tagged(service: Service) -> list[TaggedModel]:
    """The served names.

    Raises:
        NotReadyError: the model is not known yet.
    """
    details, size = _details(service.known_model()), _weight_bytes(service)
    since = timestamp(service.started)
    return [TaggedModel(name, name, since, size, _digest(name), details) for name in service.names]


def running(service: Service) -> list[RunningModel]:
    """The served names, with what they occupy.

    Raises:
        NotReadyError: the model is not known yet.
    """
    model = service.known_model()
    details, size = _details(model), _weight_bytes(service)
    return [RunningModel(name, name, size, _digest(name), details, NEVER, 0, model.max_model_len) for name in service.names]


def shown(service: Service, model: ServedModel) -> ShowResponse:
    """All about the model."""
    config, family = model.config, model.config.model_type
    info = {
        "general.architecture": family,
        "general.basename": model.name,
        f"{family}.context_length": model.max_model_len,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_layers,
        f"{family}.attention.head_count": config.num_heads,
        f"{family}.attention.head_count_kv": config.num_kv_heads,
        f"{family}.vocab_size": config.vocab_size,
    }
    template = model.chat_template.source if model.chat_template is not None else ""
    return ShowResponse(template, _parameters(model.sampling_defaults), _details(model), info, ["completion"], timestamp(service.started))


def _parameters(defaults: dict[str, Any]) -> str:
    return "\n".join(f"{name:<30} {value}" for name, value in defaults.items())


def _details(model: ServedModel) -> ModelDetails:
    return ModelDetails(model.config.model_type, [model.config.model_type])


def _weight_bytes(service: Service) -> int:
    ready = service.client.ready
    return ready.plan.get("weights", 0) if ready is not None else 0


def _digest(name: str) -> str:
    """Clients want one, and cut it to twelve characters; there is no file whose digest it could be."""
    return hashlib.sha256(name.encode()).hexdigest()
