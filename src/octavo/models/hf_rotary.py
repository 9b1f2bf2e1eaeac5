"""Rotary embedding as Hugging Face's config.json writes it, in its older and newer spelling.

Newer files have ``rope_parameters``, flat or one object for each kind of layer; older ones ``rope_theta`` beside ``rope_scaling``
(whose kind is called ``type`` or ``rope_type``), and ``rope_local_base_freq`` for Gemma 3's sliding-window layers.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.config import RotaryConfig
from octavo.models.families import Family
from octavo.models.fields import Fields

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_OPTIONAL_NUMBERS = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), "longrope": ("attention_factor",)}


def read_rotary(config: Fields, family: Family, head_dim: int, max_position: int) -> tuple[RotaryConfig, RotaryConfig | None]:
    """The rotary embedding of full-attention layers, and that of sliding-window layers where it differs.

    Raises:
        ModelLoadError: a value is missing or senseless.
        UnsupportedModelError: a kind of scaling that Octavo does not have.
    """
    given = config.object("rope_parameters") or config.object("rope_scaling")
    full, sliding = given, None if family.local_theta is not None else given
    if given is not None and ("full_attention" in given or "sliding_attention" in given):
        full, sliding = given.object("full_attention"), given.object("sliding_attention")
    theta = config.number("rope_theta", family.theta)
    rotary = _one(config, full, family, head_dim, max_position, theta)
    if family.local_theta is not None:
        theta = config.number("rope_local_base_freq", family.local_theta)
    local = _one(config, sliding, family, head_dim, max_position, theta)
    return rotary, None if local == rotary else local


def _one(config: Fields, given: Fields | None, family: Family, head_dim: int, max_position: int, theta: float) -> RotaryConfig:
    given = given or Fields(config.path, {}, "rope_parameters.")
    kind = given.text("rope_type", given.text("type", "default"))
    if kind == "su" or (kind == "yarn" and family.model_type == "phi3"):
        kind = "longrope"  # its names in early Phi-3 files
    if kind not in _KINDS:
        raise UnsupportedModelError(f"{config.path}: rotary scaling {kind!r} is not supported; these are: {', '.join(_KINDS)}.")
    share = given.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0, high=1.0), high=1.0)
    dim = int(head_dim * share)
    if dim < 2 or dim % 2:
        raise config.error("partial_rotary_factor", f"leaves {dim} rotated dimensions of {head_dim}; an even number is needed")
    theta = given.number("rope_theta", theta)
    if kind == "default":
        return RotaryConfig(dim, theta)
    original = _original_max_position(config, given, kind, max_position)
    return RotaryConfig(dim, theta, kind, _parameters(given, kind, dim, max_position, original), original)


def _original_max_position(config: Fields, given: Fields, kind: str, max_position: int) -> int | None:
    if kind == "linear":
        return None
    if kind == "dynamic":
        return max_position
    for fields in (config, given):  # Phi-3 keeps it outside, and the outer one counts where there are two
        if (original := fields.optional_integer("original_max_position_embeddings")) is not None:
            return original
    return max_position


def _parameters(given: Fields, kind: str, dim: int, max_position: int, original: int | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if kind == "longrope":
        parameters = {name: given.numbers(name, dim // 2) for name in ("short_factor", "long_factor")}
        parameters["factor"] = given.number("factor", max_position / (original or max_position))
    elif kind == "yarn" and original is not None and original < max_position:
        parameters["factor"] = given.number("factor", max_position / original)
    else:
        parameters["factor"] = given.number("factor")
    if kind == "llama3":
        parameters |= {name: given.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        if parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
            raise given.error("high_freq_factor", f"must exceed low_freq_factor {parameters['low_freq_factor']:g}")
    for name in _OPTIONAL_NUMBERS.get(kind, ()):
        if (value := given.optional_number(name)) is not None:
            parameters[name] = value
    if kind == "yarn":
        parameters["truncate"] = given.flag("truncate", True)
    return parameters


def longest_context(rotary: RotaryConfig, max_position: int, family: Family) -> int:
    """The context a model is made for, where ``max_position_embeddings`` is that before scaling.

    Linear, dynamic and YaRN scaling stretch it by their factor. Gemma 3, Llama 3 and LongRoPE files state the stretched length.
    """
    factor = rotary.params.get("factor", 1.0)
    if rotary.kind == "yarn":
        return max(max_position, int((rotary.original_max_position or max_position) * factor))
    if rotary.kind in ("linear", "dynamic") and family.local_theta is None:
        return int(max_position * max(factor, 1.0))
    return max_position
