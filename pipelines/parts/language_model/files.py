"""What files of a language model look like: the layers that a text encoder reads, and no more. Imports no torch.

Only the layers below the last one that is read are loaded, e.g. 30 of Mistral's 40 for FLUX.2. What those give does not
depend on the rest, nor on the final norm, the head or a vision tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from .recognise import kind_of

if TYPE_CHECKING:
    from ...files.header import Header

_LAYER = re.compile(r"layers\.(\d{1,6})\.")
_GGUF_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
# llama.cpp's names, which GGUF files of language models have, without the leaf
_GGUF_TOP = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head", "rope_freqs": "lm_head"}
_GGUF_BLOCK = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
GGUF_SIGNATURE = ("blk.0.attn_q.weight", "blk.0.ffn_gate.weight", "token_embd.weight")
_COMMON = ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight", "embed_tokens.weight")
# of a transformers repository, where other files hold the weights a second time in another format
TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "chat_template*", "vocab.json", "merges.txt")
REPOSITORY_FILES = (
    "config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class LanguageModelFiles:
    """One kind of language model.

    Attributes:
        title: for people.
        model_type: transformers' name of its architecture.
        prefixes: what stands before the names in single files.
        head: channels of an attention head in every released size.
        constants: of the released model, where a single file's tensors do not tell.
        signature: names beside the common ones that only files of this kind have.
        foreign: a name that files of another kind have -> what these are.
        tokenizer: end of the name of the tensor that is a tokenizer, in ComfyUI's files; empty where there is none.
        kinds: what :func:`.recognise.kind_of` may call its files.
        gguf_names: llama.cpp's names in a layer that are not the common ones, and a name that only its files have.
        gguf_interleaved: whether llama.cpp pairs the rows of the two halves of each head's queries and keys.
        gguf_norm_shift: what llama.cpp adds to the weights of norms.
        final_norm: whether the norm behind the last layer is read.
        layers: how many layers are read, from the first; None is all of them.
    """

    title: str
    model_type: str
    prefixes: tuple[str, ...]
    head: int
    constants: Mapping[str, Any]
    signature: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str = ""
    kinds: tuple[str, ...] = ()
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    gguf_interleaved: bool = False
    gguf_norm_shift: float = 0.0
    final_norm: bool = False
    layers: int | None = None

    def files(self) -> SingleFiles:
        """What files of it look like."""
        layout = Layout(self.prefixes, (*_COMMON, *self.signature), self._places)
        gguf = Layout(("",), (*GGUF_SIGNATURE, *(f"blk.0.{name}" for name in self.gguf_names)), self._gguf_places)
        return SingleFiles((layout, gguf), self._config, self.tokenizer, self._stranger)

    def _stranger(self, header: Header) -> str:
        """What a file is where it is another kind of language model; empty where it may be this one."""
        found = kind_of(header)
        if found is None or found in self.kinds:
            return ""
        known = (what for name, what in self.foreign.items() if any(key.endswith(name) for key in header.tensors))
        return next(known, f"it is {found}, and this model reads {self.title}")

    def folder_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers' ``config.json``, of the language model alone and of as many layers as are read.

        The language model's keys stand at the top, or under ``text_config`` in a model that also sees pictures; the
        base of the rotary frequencies is ``rope_theta``, since transformers 5 among the ``rope_parameters``.
        """
        text = config.get("text_config") or {}
        own = dict(text) if "hidden_size" in text else {**config, **text}
        if config.get("model_type") == self.model_type:
            own["model_type"] = self.model_type
        rope = own.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            own.setdefault("rope_theta", rope["rope_theta"])
        layers = own.get("num_hidden_layers")
        if isinstance(layers, int):
            own["num_hidden_layers"] = read = self._read(layers)
            if isinstance(own.get("layer_types"), list):
                own["layer_types"] = own["layer_types"][:read]
        return own

    def _read(self, layers: int) -> int:
        """How many of so many layers are read."""
        return layers if self.layers is None else min(layers, self.layers)

    def _places(self, infos: Infos) -> dict[str, list[Place]]:
        """Nothing of the layers that are not read, of a norm that is not read, and of the head."""
        for name, what in self.foreign.items():
            if name in infos:
                raise ValueError(what)
        unread: dict[str, list[Place]] = {}
        read = self._read(1 + max(int(match[1]) for name in infos if (match := _LAYER.match(name))))
        for name in infos:
            layer = _LAYER.match(name)
            if (
                (layer is not None and int(layer[1]) >= read)
                or (name == "norm.weight" and not self.final_norm)
                or name.startswith("lm_head.")
            ):
                unread[name] = []
        return unread

    def _gguf_places(self, infos: Infos) -> dict[str, list[Place]]:
        """The places of llama.cpp's names; nothing of what has none in the model."""
        named: dict[str, str] = {}
        for name in infos:
            module, _, leaf = name.rpartition(".")
            match = _GGUF_LAYER.fullmatch(module)
            own = self.gguf_names.get(f"{match[2]}.{leaf}") if match else None
            inner = own or (match and _GGUF_BLOCK.get(match[2]))
            named[name] = (
                f"layers.{match[1]}.{inner}.{leaf}" if match and inner else f"{_GGUF_TOP.get(module, module)}.{leaf}"
            )
        unread = self._places({own: infos[name] for name, own in named.items()})
        return {name: unread.get(own, [self._gguf_place(own, infos[name].shape)]) for name, own in named.items()}

    def _gguf_place(self, name: str, shape: tuple[int, ...]) -> Place:
        if self.gguf_norm_shift and name.endswith("norm.weight"):
            return Place(name, shift=-self.gguf_norm_shift)
        if self.gguf_interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            if not shape or shape[0] % self.head:
                raise ValueError(f"the {shape[0] if shape else 0} rows of {name} are no whole heads of {self.head}")
            return Place(name, heads=shape[0] // self.head)
        return Place(name)

    def _config(self, infos: Infos) -> dict[str, Any]:
        """transformers' configuration of a single file."""
        vocabulary, hidden = infos["embed_tokens.weight"].shape
        return {
            "model_type": self.model_type,
            "hidden_size": hidden,
            "vocab_size": vocabulary,
            "num_hidden_layers": 1 + max(int(match[1]) for name in infos if (match := _LAYER.match(name))),
            "num_attention_heads": max(1, infos["layers.0.self_attn.q_proj.weight"].shape[0] // self.head),
            "num_key_value_heads": max(1, infos["layers.0.self_attn.k_proj.weight"].shape[0] // self.head),
            "head_dim": self.head,
            "intermediate_size": infos["layers.0.mlp.gate_proj.weight"].shape[0],
            **self.constants,
        }
