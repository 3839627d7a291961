"""Files with one layer for a model's queries, keys and values: as its own layout, diffusers' fuse_qkv_projections or a
trainer has them.

What is right is LyCORIS' own formula on the weights below each other, written out here: (W + D) * dora_scale / norm.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from rendering import wanted

Tensors = dict[str, torch.Tensor]
# model, the fused layer's name in a file -> the model's modules, below each other in it
FUSED = {
    ("krea2", "lycoris_transformer_blocks_1_attn_to_qkv"): ("blocks.1.attn.wq", "blocks.1.attn.wk", "blocks.1.attn.wv"),
    ("krea2", "transformer.text_fusion.refiner_blocks.0.attn.to_qkv"): tuple(
        f"txtfusion.refiner_blocks.0.attn.w{one}" for one in "qkv"
    ),
    ("qwen_image", "lycoris_transformer_blocks_0_attn_to_qkv"): tuple(
        f"transformer_blocks.0.attn.to_{one}" for one in "qkv"
    ),
    ("qwen_image", "transformer.transformer_blocks.1.attn.to_added_qkv"): tuple(
        f"transformer_blocks.1.attn.add_{one}_proj" for one in "qkv"
    ),
    ("qwen_image", "transformer_blocks.1.attn.add_qkv_proj"): tuple(
        f"transformer_blocks.1.attn.add_{one}_proj" for one in "qkv"
    ),
    ("zimage", "lycoris_layers_0_attention_qkv"): tuple(f"layers.0.attention.to_{one}" for one in "qkv"),
    ("zimage", "diffusion_model.noise_refiner.0.attention.to_qkv"): tuple(
        f"noise_refiner.0.attention.to_{one}" for one in "qkv"
    ),
    ("lumina2", "lora_unet_layers_0_attention_qkv"): tuple(f"layers.0.attn.to_{one}" for one in "qkv"),
    ("lumina2", "lycoris_layers_1_attn_to_qkv"): tuple(f"layers.1.attn.to_{one}" for one in "qkv"),
    ("omnigen2", "diffusion_model.layers.0.attn.to_qkv"): tuple(f"layers.0.attn.to_{one}" for one in "qkv"),
    # one module there, too
    ("flux2_klein_4b", "lycoris_transformer_blocks_0_attn_to_qkv"): ("double_blocks.0.img_attn.qkv",),
    ("flux2_klein_4b", "transformer.transformer_blocks.0.attn.to_added_qkv"): ("double_blocks.0.txt_attn.qkv",),
}


def _lora(rows: int, columns: int, random: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    down, up = torch.randn(4, columns, generator=random), torch.randn(rows, 4, generator=random) / 8
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}, up @ down * 0.5


def _loha(rows: int, columns: int, random: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    a, b, c, d = (torch.randn(shape, generator=random) / 2 for shape in ((rows, 3), (3, columns)) * 2)
    found = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
    return found, (a @ b) * (c @ d) / 3


def _lokr(rows: int, columns: int, random: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    # a block of rows reaches from queries into keys
    w1, w2 = torch.randn(2, 4, generator=random) / 4, torch.randn(rows // 2, columns // 4, generator=random) / 4
    # whole factors: alpha does not count
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1.0)}, torch.kron(w1, w2)


KINDS: dict[str, Callable[[int, int, torch.Generator], tuple[Tensors, torch.Tensor]]] = {
    "LoRA": _lora, "LoHa": _loha, "LoKr": _lokr,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PlainMachine())


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "name"), FUSED)
def test_a_decomposed_fused_layer_is_that_of_the_weights_below_each_other(engine, tiny, model, name, kind, axis):
    own, modules = tiny(model), FUSED[model, name]
    weights = _weights(engine, PipelineHandle(model, own.checkpoint, "float32"), modules)
    whole = torch.cat(weights)
    random = torch.Generator().manual_seed(1)
    tensors, change = KINDS[kind](*whole.shape, random)
    scale = torch.rand((len(whole), 1) if axis == "rows" else (1, whole.shape[1]), generator=random) + 0.5
    decomposed = whole + change
    decomposed = decomposed * (scale / decomposed.norm(dim=1 if axis == "rows" else 0, keepdim=True))
    file = own.open({f"{name}.{role}": value for role, value in (tensors | {"dora_scale": scale}).items()})
    for strength in (1.0, -0.5):
        handle = _with(PipelineHandle(model, own.checkpoint, "float32"), file, strength)
        found = _outputs(engine, handle, modules)
        parts = (whole + strength * (decomposed - whole)).split([len(weight) for weight in weights])
        for module, output, part in zip(modules, found, parts, strict=True):
            expected = _input(part.shape[1]) @ part.T
            # a scale per piece instead of per column of all moves an output by a tenth of itself
            assert (output - expected).norm() < 1e-5 * expected.norm(), (module, strength)


@pytest.mark.parametrize("held", ["qfloat8", "fp8_e4m3fn", "uint4"])
def test_columns_of_quantised_weights_are_as_long_as_what_is_held(engine, tiny, held):
    """Every piece's branch reads the other pieces' weights in whatever form they are held."""
    own, name = tiny("krea2"), "lycoris_transformer_blocks_0_attn_to_qkv"
    modules = ("blocks.0.attn.wq", "blocks.0.attn.wk", "blocks.0.attn.wv")
    base = PipelineHandle("krea2", own.checkpoint, "float32", RuntimeOptions(transformer_quantization=held))
    weights = _weights(engine, base, modules)
    whole, random = torch.cat(weights), torch.Generator().manual_seed(1)
    tensors, change = _lora(*whole.shape, random)
    scale = torch.rand(1, whole.shape[1], generator=random) + 0.5
    decomposed = whole + change
    decomposed = decomposed * (scale / decomposed.norm(dim=0))
    file = own.open({f"{name}.{role}": value for role, value in (tensors | {"dora_scale": scale}).items()})
    before, found = _outputs(engine, base, modules), _outputs(engine, _with(base, file, 1.0), modules)
    parts = (decomposed - whole).split([len(weight) for weight in weights])
    for first, second, part in zip(before, found, parts, strict=True):
        added = _input(part.shape[1]) @ part.T
        assert (second - first - added).norm() < 1e-5 * added.norm()
    again = _outputs(engine, base, modules)
    assert all(torch.equal(first, second) for first, second in zip(before, again, strict=True))


def test_a_fused_layer_and_one_of_its_own_are_refused_together(tiny):
    own = tiny("qwen_image")
    rows, columns = own.shapes["transformer_blocks.0.attn.to_q.weight"]
    fused, _ = _lora(3 * rows, columns, torch.Generator().manual_seed(0))
    split, _ = _lora(rows, columns, torch.Generator().manual_seed(0))
    tensors = {f"transformer_blocks.0.attn.to_qkv.{role}": value for role, value in fused.items()}
    tensors |= {f"transformer_blocks.0.attn.to_k.{role}": value for role, value in split.items()}
    with pytest.raises(LoraError, match=r"changes rows 0 to 127 of 'transformer_blocks.0.attn.to_k.weight' twice, by"):
        own.open(tensors)


def _with(handle: PipelineHandle, file, strength: float) -> PipelineHandle:
    assert not file.mergeable
    return handle.with_lora(
        LoraSpec("x", file.stamp, strength, "auto", file.title, file.mergeable, file.parts, file.companion)
    )


def _weights(engine: Engine, handle: PipelineHandle, modules: tuple[str, ...]) -> list[torch.Tensor]:
    """As they are held, in float32."""
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        found = [transformer.get_submodule(module).weight for module in modules]
        return [(own if type(own) is torch.nn.Parameter else own.dequantize()).detach().float() for own in found]


def _input(columns: int) -> torch.Tensor:
    return torch.randn(3, columns, generator=torch.Generator().manual_seed(7))


def _outputs(engine: Engine, handle: PipelineHandle, modules: tuple[str, ...]) -> list[torch.Tensor]:
    """What each module gives, without its bias."""
    engine.apply_loras(wanted(engine, handle), "transformer", SilentObserver())
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        found = []
        for module in modules:
            layer = transformer.get_submodule(module)
            output = layer(_input(layer.in_features))
            found.append(output if layer.bias is None else output - layer.bias)
        return found
