"""Files that PEFT and diffusers themselves save, whose alpha is not among the tensors, against PEFT's own modules."""

from __future__ import annotations

import json
import time

import pytest
import torch
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.lora.info import summary
from comfyui_aitk.pipelines.lora.peft_config import read_configs
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from rendering import wanted
from safetensors.torch import load_file, save_file

MODEL = find_model("lumina2")
TARGETS = ["to_q", "to_k", "linear_1"]
CONFIGS = {
    "alpha": lambda: LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS),
    "alpha by pattern": lambda: LoraConfig(
        r=4, lora_alpha=2, target_modules=TARGETS, alpha_pattern={"layers.1.attn.to_q": 12, "linear_1": 7}
    ),
    "rsLoRA": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_rslora=True),
    "DoRA": lambda: LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, use_dora=True),
    "LoKr": lambda: LoKrConfig(r=4, alpha=8, target_modules=TARGETS, decompose_both=False),
    # of so many ranks both factors are whole; the scale is alpha / rank all the same
    "LoKr of whole factors": lambda: LoKrConfig(r=32, alpha=8, target_modules=TARGETS),
    "LoKr of whole factors, ranks by pattern": lambda: LoKrConfig(
        r=32, alpha=8, target_modules=TARGETS, rank_pattern={"to_q": 64}, alpha_pattern={"linear_1": 4}
    ),
    "LoHa": lambda: LoHaConfig(r=4, alpha=8, target_modules=TARGETS),
}


def _transformer(checkpoint) -> Lumina2Transformer2DModel:
    return Lumina2Transformer2DModel.from_pretrained(
        checkpoint.source("transformer").folder, subfolder="transformer", torch_dtype=torch.float32
    )


def _randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, value in module.named_parameters():
        if any(part in name for part in ("lora_A", "lora_B", "lokr_", "hada_")):
            value.data = torch.randn(value.shape, generator=generator) / 6
        elif "magnitude" in name:
            value.data = value.data * 1.3


def _ours(engine, checkpoint, path, application: str, x: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    file = open_lora(path, path.name, MODEL, checkpoint)
    spec = LoraSpec(
        path.name, file.stamp, 0.7, application, file.title, file.mergeable, file.parts, file.companion
    )  # fmt: skip
    handle = PipelineHandle("lumina2", checkpoint, "float32").with_lora(spec)
    engine.apply_loras(wanted(engine, handle, "reference pipeline"), "transformer", SilentObserver())
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return [transformer.get_submodule(name)(x) for name in names]


NAMES = ["layers.0.attn.to_k", "layers.1.attn.to_q", "layers.1.feed_forward.linear_1"]


@pytest.mark.parametrize(
    ("name", "application"),
    [(name, how) for name in CONFIGS for how in ("auto", "merged") if (name, how) != ("DoRA", "merged")],
)
def test_a_folder_that_peft_saved(engine, checkpoint, tmp_path, name, application):
    model = get_peft_model(_transformer(checkpoint), CONFIGS[name]())
    _randomise(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    # strength 0.7, as PEFT's own scaling
    for module in model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling = {key: value * 0.7 for key, value in module.scaling.items()}
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [model.base_model.model.get_submodule(layer)(x) for layer in NAMES]
    for ours, theirs in zip(_ours(engine, checkpoint, path, application, x, NAMES), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name
    # the file alone: said, and taken for scale 1
    alone = tmp_path / "alone" / "adapter_model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    assert "PEFT keeps alpha in adapter_config.json" in summary(open_lora(alone, alone.name, MODEL, checkpoint))
    assert "PEFT keeps alpha" not in summary(open_lora(path, path.name, MODEL, checkpoint))


def test_a_file_that_diffusers_saved_with_its_metadata(engine, checkpoint, tmp_path):
    config = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)
    transformer = _transformer(checkpoint)
    transformer.add_adapter(config)
    _randomise(transformer)
    Lumina2Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    (path,) = tmp_path.glob("*.safetensors")
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    transformer.set_adapters(["default"], [0.7])
    with torch.no_grad():
        expected = [transformer.get_submodule(name)(x) for name in NAMES]
    for ours, theirs in zip(_ours(engine, checkpoint, path, "auto", x, NAMES), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert "alpha 16, scale alpha / rank = 4" in summary(open_lora(path, path.name, MODEL, checkpoint))


HOSTILE = [
    json.dumps({"lora_alpha": 1, "alpha_pattern": patterns})
    for patterns in (
        # regular expressions that never end on a long name, and what no name is
        {"(a+)+b": 2}, {"(.*)*x": 2}, {"(x|x)*y": 2}, {"a{99999}": 2}, {".*": 2}, {"to_[qk]": 2}, {"": 2},
        {"a" * 301: 2}, {"a.": 2}, {"a..b": 2}, {"to_q\n": 2}, {str(number): 2 for number in range(10_001)}, ["to_q"],
        {"to_q": float("inf")}, {"to_q": float("nan")}, {"to_q": 10**400}, {"to_q": [1]},
    )
]  # fmt: skip
HOSTILE += [
    '{"lora_alpha": Infinity}',
    '{"lora_alpha": 1' + "0" * 5000 + "}",
    "[" * 100_000,
    '{"a": "' + "x" * (1 << 24),
]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": {"(": 2}}', *HOSTILE]
)
def test_a_configuration_that_cannot_be_understood_is_an_error(checkpoint, models, tmp_path, text):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes((models / "loras" / "tiny.safetensors").read_bytes())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(LoraError, match=r"'x': adapter_config.json cannot be understood, and alpha is in it"):
        open_lora(path, "x", MODEL, checkpoint)


PATTERNS = {
    # PEFT counts the first that fits; an end of a name is whole steps
    "to_q": 3.0, "layers.1.attn.to_k": 5.0, "^layers.0.attn.to_k": 6.0, r"layers\.1\.attn\.to_k": 7.0, "o_k": 8.0,
    r"feed_forward\.linear_1$": 9.0, "^linear_2": 10.0, "layers.1.attn.to_q": 11.0,
}  # fmt: skip


def test_simple_patterns_mean_what_they_mean_to_peft():
    config = next(iter(read_configs(None, {"lora_adapter_metadata": json.dumps(
        {"transformer.lora_alpha": 2, "transformer.alpha_pattern": PATTERNS}
    )}, "x", "transformer").values()))  # fmt: skip
    for layer in ("to_q", "to_k", "to_v", "linear_1"):
        for block in ("layers.0", "layers.1", "noise_refiner.layers.0"):
            name = f"{block}.{'feed_forward' if 'linear' in layer else 'attn'}.{layer}"
            assert config.alpha_of(name, 4) == PATTERNS.get(get_pattern_key(PATTERNS, name), 2.0), name
    assert config.alpha_of("linear_2", 4) == 10.0


def test_many_patterns_and_parts_take_no_time():
    begin = time.process_time()
    patterns = {f"layers.{number}.attn.to_q": 2 for number in range(10_000)}
    values = {f"transformer{number}.lora_alpha": 1 for number in range(20_000)} | {"t.alpha_pattern": patterns}
    configs = read_configs(None, {"lora_adapter_metadata": json.dumps(values)}, "x", "transformer")
    for number in range(5_000):
        assert configs["t"].alpha_of(f"layers.{number}.attn.to_q", 4) == 2.0
    assert time.process_time() - begin < 5


def test_another_configuration_is_another_lora(checkpoint, models, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes((models / "loras" / "tiny.safetensors").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "r": 4}))
    first = open_lora(path, "x", MODEL, checkpoint)
    assert {layer.alpha for layer in first.layers} == {3.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12345, "r": 4}))
    assert {layer.alpha for layer in open_lora(path, "x", MODEL, checkpoint).layers} == {12345.0}


def test_a_whole_number_is_an_alpha_and_an_adapter_has_any_name(engine, checkpoint, tmp_path):
    path = make_lora(tmp_path / "a.safetensors", checkpoint.source("transformer").folder, alpha=2.0)
    tensors = load_file(path)
    renamed = {
        key.replace(".lora_A.", ".lora_A.my_style_2.").replace(".lora_B.", ".lora_B.my_style_2."): value.to(torch.int64)
        if key.endswith(".alpha")
        else value
        for key, value in tensors.items()
    }
    other = tmp_path / "b.safetensors"
    save_file(renamed, other)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(
        _ours(engine, checkpoint, other, "live", x, NAMES),
        _ours(engine, checkpoint, path, "live", x, NAMES),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert FileStamp.of(other) == open_lora(other, "b", MODEL, checkpoint).stamp
