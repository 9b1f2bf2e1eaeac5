"""transformers' model of a config.json with random weights, made on the device: no checkpoint is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def random_model(folder: Path, device: str, dtype: torch.dtype, attention: str) -> Any:
    """The model, its matrices normal with deviation 0.02.

    Args:
        attention: transformers' name of the implementation.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder)
    factory: Any = AutoModelForCausalLM
    with torch.device(device), no_init_weights():
        model = factory.from_config(config, dtype=dtype, attn_implementation=attention)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0)
    return model.eval()
