"""What files of FLUX.2's text encoders look like: Mistral Small 3 and Qwen3. Imports no torch.

Only the layers below the last one that is read are loaded: 30 of Mistral's 40, 27 of Qwen3's 36. What those give does
not depend on the rest, nor on the final norm, the head or the vision tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...sources.layout import Infos, Layout, Place, SingleFiles

_HEAD = 128  # channels of a head in every released size of both
# transformers' names of a whole model, old and new; ComfyUI's; an encoder alone
_MISTRAL_PREFIXES = ("language_model.model.", "model.language_model.", "model.", "")
_QWEN3_PREFIXES = ("model.", "")
_LAYER = re.compile(r"layers\.(\d+)\.")
_COMMON = ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight", "embed_tokens.weight")


@dataclass(frozen=True)
class TextEncoderFacts:
    """One text encoder.

    Attributes:
        title: for people.
        model_type: transformers' name of its architecture.
        hidden_states: those that stand side by side in an embedding, counted from the token embeddings, 0.
        constants: of the released model, where a single file's tensors do not tell.
    """

    title: str
    model_type: str
    hidden_states: tuple[int, int, int]
    constants: Mapping[str, Any]

    def folder_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers' ``config.json``, of the language model alone and of as many layers as are read."""
        own = dict(config.get("text_config", config))
        rope = own.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            # transformers before 5 reads it here
            own.setdefault("rope_theta", rope["rope_theta"])
        layers = own.get("num_hidden_layers")
        if isinstance(layers, int) and layers > self.layers:
            own["num_hidden_layers"] = self.layers
            if isinstance(own.get("layer_types"), list):
                own["layer_types"] = own["layer_types"][: self.layers]
        return own

    @property
    def layers(self) -> int:
        return self.hidden_states[-1]

    def places(self, infos: Infos) -> dict[str, list[Place]]:
        """Nothing of the layers that are not read, of the final norm and of the head."""
        unread: dict[str, list[Place]] = {}
        for name in infos:
            layer = _LAYER.match(name)
            if (layer and int(layer[1]) >= self.layers) or name == "norm.weight" or name.startswith("lm_head."):
                unread[name] = []
        return unread

    def config(self, infos: Infos) -> dict[str, Any]:
        """transformers' configuration of a single file."""
        vocabulary, hidden = infos["embed_tokens.weight"].shape
        return {
            "model_type": self.model_type,
            "hidden_size": hidden,
            "vocab_size": vocabulary,
            "num_hidden_layers": 1 + max(int(match[1]) for name in infos if (match := _LAYER.match(name))),
            "num_attention_heads": max(1, infos["layers.0.self_attn.q_proj.weight"].shape[0] // _HEAD),
            "num_key_value_heads": max(1, infos["layers.0.self_attn.k_proj.weight"].shape[0] // _HEAD),
            "head_dim": _HEAD,
            "intermediate_size": infos["layers.0.mlp.gate_proj.weight"].shape[0],
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "sliding_window": None,
            **self.constants,
        }


def _mistral_places(infos: Infos) -> dict[str, list[Place]]:
    if "layers.0.self_attn.q_norm.weight" in infos:
        raise ValueError("it is Qwen3, and this model was trained with Mistral Small 3")
    return MISTRAL.places(infos)


# config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503
MISTRAL = TextEncoderFacts(
    title="Mistral Small 3.1",
    model_type="mistral",
    hidden_states=(10, 20, 30),
    constants={"rms_norm_eps": 1e-5, "rope_theta": 1e9, "max_position_embeddings": 131072, "attention_bias": False},
)
# config.json of Qwen/Qwen3-4B and Qwen/Qwen3-8B
QWEN3 = TextEncoderFacts(
    title="Qwen3",
    model_type="qwen3",
    hidden_states=(9, 18, 27),
    constants={
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "attention_bias": False,
        "use_sliding_window": False,
    },
)

MISTRAL_FILES = SingleFiles(
    layouts=(Layout(_MISTRAL_PREFIXES, _COMMON, _mistral_places),),
    config=MISTRAL.config,
    tokenizer="tekken_model",  # ComfyUI's name of it
)
QWEN3_FILES = SingleFiles(
    layouts=(Layout(_QWEN3_PREFIXES, (*_COMMON, "layers.0.self_attn.q_norm.weight"), QWEN3.places),),
    config=QWEN3.config,
)
