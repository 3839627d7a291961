"""What is planned for models of released size on the machines that people have; the page of memory has the rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.files.header import TensorInfo
from comfyui_aitk.pipelines.layers.holding import holding_of
from comfyui_aitk.pipelines.layers.measure import expected_sizes
from comfyui_aitk.pipelines.machine.plan import DeviceMemory, PartNeeds, PartSizes, Plan, make_plan
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.krea2.network import Krea2Transformer
from comfyui_aitk.pipelines.models.recipe import TRAINER_PREVIEW
from comfyui_aitk.pipelines.options import Quantization
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

PAGE = Path(__file__).resolve().parents[2] / "docs/memory.md"
GIB = 1 << 30


@dataclass(frozen=True)
class Released:
    """A model's networks at their released size, with the names of their main blocks."""

    transformer: Callable[[], nn.Module]
    blocks: str
    encoder: Callable[[], nn.Module]


RELEASED = {
    "qwen_image": Released(
        QwenImageTransformer2DModel,
        "transformer_blocks",
        # the language model of Qwen2.5-VL 7B has Qwen2's layers
        lambda: Qwen2Model(
            Qwen2Config(
                vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4,
            )
        ),
    ),
    "krea2": Released(
        Krea2Transformer,
        "blocks",
        # that of Qwen3-VL 4B has Qwen3's, of which 35 are read
        lambda: Qwen3Model(
            Qwen3Config(
                vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=35,
                num_attention_heads=32, num_key_value_heads=8, head_dim=128,
            )
        ),
    ),
}  # fmt: skip


def _sizes(make: Callable[[], nn.Module], blocks: str, quantization: Quantization, plain: tuple[str, ...]) -> PartSizes:
    with torch.device("meta"):
        module = make()
    infos = {name: TensorInfo("BF16", tuple(value.shape)) for name, value in module.named_parameters()}
    main = list(module.get_submodule(blocks).children()) if blocks else []
    return expected_sizes(module, main, infos, torch.bfloat16, holding_of(quantization, plain))


@pytest.fixture(scope="module")
def needs() -> dict[str, list[PartNeeds]]:
    kinds: tuple[Quantization, ...] = ("none", "qfloat8")
    found = {}
    for model, one in RELEASED.items():
        plain = find_model(model).recipes[TRAINER_PREVIEW].plain.get("transformer", ())
        encoders = {kind: _sizes(one.encoder, "layers", kind, ()) for kind in kinds}
        transformers = {kind: _sizes(one.transformer, one.blocks, kind, plain) for kind in kinds}
        vae = {"none": _sizes(AutoencoderKLQwenImage, "", "none", ())}
        found[model] = [
            PartNeeds("text_encoder", "encoder", "none", encoders, "qfloat8", activations=GIB),
            PartNeeds("transformer", "denoiser", "none", transformers, "qfloat8", activations=2 * GIB),
            PartNeeds("vae", "autoencoder", "none", vae, activations=2200 * 64 * 128 * 128 * 2),
        ]
    return found


def _plan(needs: list[PartNeeds], card: int, main: int) -> Plan:
    """On a card and with a memory sold as so many GB: 5 % of the card and 2.5 % of the memory are taken before us."""
    return make_plan(needs, DeviceMemory(card * GIB, card * GIB * 95 // 100), main * GIB * 975 // 1000)


def test_the_page_of_memory_has_what_is_planned(needs):
    rows = []
    for model, own in needs.items():
        for card, main in ((16, 32), (24, 64), (48, 64)):
            plan = _plan(own, card, main)
            transformer, encoder = plan.part("transformer"), plan.part("text_encoder")
            held = [f"{part.quantization}, {part.weights / 1e9:.1f} GB" for part in (transformer, encoder)]
            streamed = f"{transformer.streamed} of {transformer.blocks}" if transformer.streamed else "none"
            turns = "they take turns" if plan.take_turns else "both stay"
            title = find_model(model).title
            rows.append(f"| {title} | {card} GB | {main} GB | {held[0]} | {held[1]} | {streamed} | {turns} |")
    shown = re.findall(r"^\| [A-Z][^|]+ \| \d+ GB \|.*$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert shown == rows


@pytest.mark.parametrize("model", RELEASED)
def test_blocks_are_as_many_as_the_model_states(needs, model):
    transformer = next(one for one in needs[model] if one.part == "transformer")
    assert len(transformer.sizes["none"].blocks) == find_model(model).main_blocks
