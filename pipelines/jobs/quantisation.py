"""How a job's model section quantises the two parts of a model that it may quantise.

Sources: AI Toolkit config_modules.py ModelConfig, toolkit/util/quantize.py (27a03a91).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from ..options import Quantization
from ..words import shown
from .loaders import NEW_LOADERS, OLD_LOADERS, by_old_loaders, version_of

if TYPE_CHECKING:
    from ..models.facts import ModelFacts

# all of this pack's but its own
TYPES = tuple(one for one in get_args(Quantization) if one != "fp8_e4m3fn")
# the type whose every layer AI Toolkit refuses: the weights stay, and no LoRA is merged into them (uintx_quant.py)
NO_TYPE = "uint8"
_SAME_TYPES = {"qfloat8_e4m3fn": "qfloat8"}  # two of quanto's names


def denoiser_type(section: Mapping[str, Any], *, takes_adapter: bool) -> str:
    """The denoiser's type, ``none`` where it is not quantised.

    Args:
        section: the model section.
        takes_adapter: whether a training adapter was merged under the model.
    """
    found = _type(section, "quantize", "qtype")
    if found == "qfloat8" and section.get("qtype", found) == found and takes_adapter:
        return "float8"  # AI Toolkit z_image.py load_model
    return found


def encoder_types(section: Mapping[str, Any], facts: ModelFacts | None) -> tuple[str, ...]:
    """The text encoder's type; of a model whose key changed, that of the old loaders and that of the new ones."""
    own, shared = _type(section, "quantize_te", "qtype_te"), _type(section, "quantize_te", "qtype")
    rule = facts.encoder_qtype if facts else "qtype_te"
    if rule == "qtype_te since 0.13":
        return (own,) if own == shared else (shared, own)
    return (shared,) if rule == "qtype" else (own,)


def encoder_type(types: tuple[str, ...], trained_with: str) -> tuple[str, str]:
    """The text encoder's type at a version, and a sentence where nothing tells it."""
    version = version_of(trained_with)
    old, new = types[0], types[-1]
    if by_old_loaders(trained_with):
        return old, ""
    if old == new or (version is not None and version >= NEW_LOADERS):
        return new, ""
    return new, (
        f"AI Toolkit up to {OLD_LOADERS} quantised this model's text encoder to {shown(old)}, from {NEW_LOADERS} "
        f"on to {shown(new)}. Nothing tells which rendered these previews; {shown(new)} is taken."
    )


def offloads(section: Mapping[str, Any]) -> bool:
    """Whether layers are moved to the device one at a time."""
    return bool(section.get("layer_offloading", section.get("auto_memory", False)))


def _type(section: Mapping[str, Any], switch: str, key: str) -> str:
    """A part's type: ``none`` where its switch is off."""
    if not section.get(switch, section.get("quantize", False)):
        return "none"
    said = section.get(key, "qfloat8")
    found = said.split("|", 1)[0] if isinstance(said, str) else shown(said)
    found = _SAME_TYPES.get(found, found)
    # quanto's weights cannot be moved a layer at a time: AI Toolkit takes torchao's type, where it finds this very text
    return "float8" if said == "qfloat8" and offloads(section) else found
