"""LoRA files that people reported, one test a row, named by it, and other files of the same kind.

What is right is worked out in the test: the sum of B @ A by parameter, or what the message must say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import Header, TensorInfo
from comfyui_aitk.pipelines.lora.formats import recognise
from comfyui_aitk.pipelines.lora.info import trigger_word
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.lora.peft_config import read_configs
from comfyui_aitk.pipelines.models import find_model
from tiny_loras import Tensors, Tiny, matrices, pair

KLEIN = "flux2_klein_4b"
KOHYA = (".lora_down.weight", ".lora_up.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
Models = Callable[[str], Tiny]


def assert_changes(own: Tiny, tensors: Tensors, expected: dict[str, torch.Tensor]) -> None:
    found = own.changes(tensors)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def rows_of(own: Tiny, module: str, share: int = 1) -> tuple[int, int]:
    rows, columns = own.shapes[f"{module}.weight"]
    return rows // share, columns


def product(shape: tuple[int, int]) -> torch.Tensor:
    down, up = matrices(*shape)
    return up @ down


def refused(own: Tiny, tensors: Tensors | dict[str, TensorInfo]) -> str:
    """The message of a file, or of a header alone."""
    header = Header(Path("x"), tensors, {})
    of_header = all(isinstance(value, TensorInfo) for value in tensors.values())
    with pytest.raises(LoraError) as caught:
        recognise(header, "x", find_model(own.model).title, own.names) if of_header else own.open(tensors)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def wide(name: str, rows: int, columns: int, ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")) -> dict:
    return {name + ends[0]: TensorInfo("BF16", (16, columns)), name + ends[1]: TensorInfo("BF16", (rows, 16))}


# ---- applied --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ends", [(".lora_A.weight", ".lora_B.weight"), KOHYA, (".lora_A.x.weight", ".lora_B.x.weight")]
)
@pytest.mark.parametrize("model", ["flux2", KLEIN])
def test_l01_released_names_beside_diffusers(tiny: Models, model, ends):
    own, proj, qkv = tiny(model), "double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.qkv"
    third = rows_of(own, qkv, 3)
    tensors = pair(f"diffusion_model.{proj}", *rows_of(own, proj))
    tensors |= pair("transformer.transformer_blocks.0.attn.add_k_proj", *third, ends)
    none = torch.zeros(third)
    expected = {f"{proj}.weight": product(rows_of(own, proj)), f"{qkv}.weight": torch.cat([none, product(third), none])}
    assert_changes(own, tensors, expected)
    twice = tensors | pair(f"base_model.model.{qkv}", 3 * third[0], third[1])
    assert f"of '{qkv}.weight' twice, by" in refused(own, twice)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("diffusion_model.double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("diffusion_model.double_blocks.0.txt_mlp_0", "double_blocks.0.txt_mlp.0"),
        ("double_blocks_0.img_attn_proj", "double_blocks.0.img_attn.proj"),
        ("transformer.transformer_blocks_0_ff.linear_in", "double_blocks.0.img_mlp.0"),
    ],
)
def test_l03_names_half_of_dots_and_half_of_underscores(tiny: Models, name, module):
    own = tiny(KLEIN)
    shape = rows_of(own, module)
    assert_changes(own, pair(name, *shape), {f"{module}.weight": product(shape)})


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("diffusion_model.single_blocks.0.norm.key_norm.diff", "single_blocks.0.norm.key_norm.scale"),
        ("transformer.transformer_blocks.0.attn.norm_added_k.diff", "double_blocks.0.txt_attn.norm.key_norm.scale"),
        ("single_transformer_blocks.0.attn.norm_q.diff", "single_blocks.0.norm.query_norm.scale"),
    ],
)  # fmt: skip
def test_l10_norms_that_are_called_scale_beside_all_linear_layers(tiny: Models, key, parameter):
    own = tiny(KLEIN)
    linear = [name.removesuffix(".weight") for name, shape in own.shapes.items() if len(shape) == 2]
    change = torch.linspace(-1, 1, *own.shapes[parameter])
    tensors, expected = {key: change}, {parameter: change}
    for module in linear:
        tensors |= pair(f"diffusion_model.{module}", *rows_of(own, module), KOHYA)
        expected[f"{module}.weight"] = product(rows_of(own, module))
    assert_changes(own, tensors, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["lora", "lokr", "oft"])
def test_l13_float8_matrices_and_alpha(tiny: Models, dtype, form):
    own, module = tiny(KLEIN), "single_blocks.0.linear2"
    rows, columns = rows_of(own, module)
    random = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    alpha = torch.tensor(1.0).to(dtype)
    if form == "lora":
        down, up = rand(2, columns), rand(rows, 2)
        tensors = {"lora_A.weight": down, "lora_B.weight": up, "alpha": alpha}
        expected = up.float() @ down.float() / 2
    elif form == "lokr":
        first, down, up = rand(2, 2), rand(4, columns // 2), rand(rows // 2, 4)
        tensors = {"lokr_w1": first, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": alpha}
        expected = torch.kron(first.float(), up.float() @ down.float()) / 4
    else:
        tensors, expected = {"oft_blocks": rand(rows // 4, 4, 4)}, None
    file = own.open({f"diffusion_model.{module}.{end}": value for end, value in tensors.items()})
    assert len(file.layers) == 1
    if expected is not None:
        assert_changes(
            own, {f"{module}.{end}": value for end, value in tensors.items()}, {f"{module}.weight": expected}
        )


@pytest.mark.parametrize("adapter", ["klein-9b-style", "v1.0", "0", "ünï (2)", "default.old"])
def test_l14_any_name_of_an_adapter(tiny: Models, adapter):
    own, module = tiny(KLEIN), "single_blocks.0.linear2"
    ends = (f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight")
    shape = rows_of(own, module)
    assert_changes(own, pair(f"base_model.model.{module}", *shape, ends), {f"{module}.weight": product(shape)})


@pytest.mark.parametrize(
    "prefix",
    ["transformer.base_model.model.", "base_model.model.transformer.", "unet.base_model.model.", "pipe.dit._orig_mod."],
)
@pytest.mark.parametrize("model", [KLEIN, "lumina2", "zimage", "omnigen2"])
def test_l18_prefixes_of_prefixes_and_diffusers_old_ends(tiny: Models, prefix, model):
    own = tiny(model)
    module = next(name for name in own.shapes if name.endswith(("attn.proj.weight", "to_out.0.weight")))[:-7]
    shape = rows_of(own, module)
    assert_changes(own, pair(prefix + module, *shape, OLD), {f"{module}.weight": product(shape)})


@pytest.mark.parametrize(
    ("model", "module", "leaf", "end"),
    [
        ("lumina2", "layers.0.norm2", "weight", "w_norm"),
        ("lumina2", "x_embedder", "bias", "b_norm"),
        ("zimage", "layers.0.attention.norm_q", "weight", "w_norm"),
        ("omnigen2", "layers.0.attn.norm_k", "weight", "w_norm"),
        (KLEIN, "single_blocks.0.norm.key_norm", "scale", "w_norm"),
    ],
)
def test_lu2_norms_of_lycoris(tiny: Models, model, module, leaf, end):
    own = tiny(model)
    change = torch.linspace(-1, 1, *own.shapes[f"{module}.{leaf}"])
    assert_changes(own, {f"lycoris_{module.replace('.', '_')}.{end}": change}, {f"{module}.{leaf}": change})


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("lumina2", "diffusion_model.norm_final.diff"),
        ("lumina2", "lora_unet_norm_final.w_norm"),
        ("zimage", "diffusion_model.norm_final.diff"),
        ("zimage", "text_encoder.lm_head.lora_A.weight"),
    ],
)
def test_lu1b_what_the_model_does_not_use_is_skipped(tiny: Models, model, key):
    own = tiny(model)
    module = next(name for name in own.shapes if name.endswith("to_out.0.weight"))[:-7]
    shape = rows_of(own, module)
    tensors = pair(f"diffusion_model.{module}", *shape) | {key: torch.full((3, 96), torch.nan)}
    assert_changes(own, tensors, {f"{module}.weight": product(shape)})
    assert own.open(tensors).notes == (f"skipped 1 key, as '{key}': the model does not use it",)


def test_l15_oft_of_kohya_is_applied(tiny: Models):
    """oft_blocks.N of a fused layer turns a share each; 90 degrees in the plane of two rows are told by hand."""
    own, module = tiny(KLEIN), "double_blocks.0.img_attn.qkv"
    rows = own.shapes[f"{module}.weight"][0]
    # Q = [[0, 1], [-1, 0]] gives R = [[0, 1], [-1, 0]]: W' = R^T W takes the rows a, b to -b, a
    turning, still = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)
    third = rows // 6
    shares = [still.repeat(third, 1, 1), torch.stack([turning, *[still] * (third - 1)]), still.repeat(third, 1, 1)]
    tensors = {f"oft_unet_{module.replace('.', '_')}.oft_blocks.{number}": one for number, one in enumerate(shares)}
    ((layer, adapter),) = own.read(tensors).items()
    weight = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    expected = weight.clone()
    expected[rows // 3], expected[rows // 3 + 1] = -weight[rows // 3 + 1], weight[rows // 3]
    assert layer.kind.title == "OFT"
    assert torch.allclose(adapter.merge(weight, 1.0, Workspace("cpu")), expected, atol=1e-6)


def test_l15_oft_of_peft_and_onetrainer_is_applied(tiny: Models):
    """A block of two columns with q: R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, where Q^2 = -q^2 I."""
    own, module, q = tiny(KLEIN), "double_blocks.0.img_attn.proj", 0.3
    columns = own.shapes[f"{module}.weight"][1]
    triangles = torch.zeros(columns // 2, 1)
    triangles[1] = q
    ((layer, adapter),) = own.read({f"diffusion_model.{module}.oft_R.weight": triangles}).items()
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    expected, (a, b) = weight.clone(), weight[:, 2:4].T
    same, other = 1 - 2 * q**2 + q**4, 2 * q - 2 * q**3
    expected[:, 2], expected[:, 3] = same * a + other * b, same * b - other * a
    assert layer.kind.title == "OFTv2"
    assert torch.allclose(adapter.merge(weight, 1.0, Workspace("cpu")), expected, atol=1e-6)


# ---- refused, by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.diff",
        "text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight",
        "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.diff",
    ],
)
@pytest.mark.parametrize("model", [KLEIN, "flux2", "omnigen2"])
def test_l22_the_text_encoders_half(tiny: Models, key, model):
    own = tiny(model)
    module = next(name for name in own.shapes if name.endswith(("attn.proj.weight", "to_out.0.weight")))[:-7]
    message = refused(own, pair(module, *rows_of(own, module)) | {key: torch.ones(2, 2)})
    assert "also changes the text encoder: 1 layer" in message and "the text encoder's half cannot be" in message


@pytest.mark.parametrize(
    ("title", "tensors"),
    [
        ("FLUX.2-klein 9B", wide("lora_unet_double_blocks_0_img_attn_qkv", 12288, 4096, KOHYA)),
        ("FLUX.2-klein 9B or Qwen-Image 2.1", wide("transformer.transformer_blocks.0.attn.to_q", 4096, 4096)),
        ("FLUX.2-klein 9B", wide("transformer.transformer_blocks.0.attn.add_q_proj", 4096, 4096)),
        ("FLUX.2-klein 9B", wide("diffusion_model.single_blocks.3.linear1", 36864, 4096)),
        ("FLUX.2-dev", wide("lora_unet_double_blocks_0_txt_attn_qkv", 18432, 6144, KOHYA)),
        ("FLUX.1 or Chroma", wide("lora_unet_single_blocks_0_linear1", 21504, 3072, KOHYA)),
    ],
)
def test_n1_another_size_is_told_by_widths(tiny: Models, title, tensors):
    assert f"It looks like one for {title}." in refused(tiny(KLEIN), tensors)


def test_n1_klein_4bs_own_width_is_told_from_flux_1s(tiny: Models):
    own = wide("lora_unet_single_blocks_0_linear1", 27648, 3072, KOHYA)
    assert "It looks like one for FLUX.2-klein 4B." in refused(tiny("zimage"), own)


@pytest.mark.parametrize(
    ("model", "title", "name", "width"),
    [
        ("lumina2", "Z-Image", "lora_unet_layers_0_attention_to_q", 3840),
        ("lumina2", "Z-Image", "diffusion_model.layers.0.attention.qkv", 3840),
        ("zimage", "Lumina Image 2.0", "transformer.layers.0.attn.to_q", 2304),
        ("omnigen2", "Lumina Image 2.0", "transformer.layers.0.attn.to_q", 2304),
        ("lumina2", "OmniGen2", "diffusion_model.layers.0.attn.to_q", 2520),
    ],
)
def test_lu5_another_model_of_luminas_layout_is_named(tiny: Models, model, title, name, width):
    message = refused(tiny(model), wide(name, width, width, KOHYA if "unet" in name else OLD))
    assert f"It looks like one for {title}" in message


HOSTILE = {
    "an expression without end": {"(a+)+$": 4},
    "an expression of alternatives": {"to_q|to_k": 4},
    "20,000 names": {f"layers.{number}.to_q": 4 for number in range(20_000)},
    "a name without end": {"a" * 1_000_000: 4},
    "no number": {"to_q": "many"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_re_patterns_that_are_no_names_are_refused_at_once(name):
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.alpha_pattern": HOSTILE[name]})}
    begin = time.process_time()
    with pytest.raises(LoraError, match="cannot be understood, and alpha is in it"):
        read_configs(None, metadata, "x", "transformer")
    assert time.process_time() - begin < 20


def test_re_names_and_peft_simple_form_are_read():
    patterns = {"layers.0.to_q": 3, "^to_k$": 5, r"layers\.1\.to_v": 7}
    metadata = {
        "lora_adapter_metadata": json.dumps({"transformer.alpha_pattern": patterns, "transformer.lora_alpha": 2})
    }
    config = read_configs(None, metadata, "x", "transformer")["transformer"]
    found = [config.alpha_of(name, 4) for name in ("a.layers.0.to_q", "to_k", "a.to_k", "layers.1.to_v", "to_out")]
    assert found == [3, 5, 2, 7, 2]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("x" * 5_000_000, "x" * 200), ("a\x1b[31mb\x00c", "ab c"), ("half \ud800 of one", "half of one")],
    ids=["5 MB", "escape codes and NUL", "half a surrogate"],
)
def test_tw_a_trigger_word_is_cut_and_cleaned(tiny: Models, word, expected):
    own = tiny("lumina2")
    file = own.open(pair("layers.0.attn.to_out.0", 96, 96))
    metadata = {"ss_tag_frequency": json.dumps({"1": {word: 1}})}
    assert trigger_word(replace(file, header=replace(file.header, metadata=metadata))) == expected
