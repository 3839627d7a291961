"""LoRA files as trainers and converters really name them: each key is understood by itself.

What is right is added up by hand, from the file's matrices, for each parameter of the model.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import Header, TensorInfo
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import read_lora
from comfyui_aitk.pipelines.lora.formats import recognise
from comfyui_aitk.pipelines.lora.info import summary
from comfyui_aitk.pipelines.lora.keys import take_apart
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.lora.names import names_of
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from rendering import wanted
from tiny_loras import matrices, pair

KOHYA = (".lora_down.weight", ".lora_up.weight")
OLD_DIFFUSERS = (".lora.down.weight", ".lora.up.weight")
# model -> (a layer's parameter in the model, its name in the release, its name in diffusers, which rows)
LAYERS = {
    "flux2": ("double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.proj", "transformer_blocks.0.attn.to_out.0"),
    "flux2_klein_4b": ("single_blocks.0.linear2", "single_blocks.0.linear2", "single_transformer_blocks.0.attn.to_out"),
    "zimage": ("layers.0.attention.to_out.0", "layers.0.attention.out", "layers.0.attention.to_out.0"),
    "lumina2": ("layers.0.attn.to_out.0", "layers.0.attention.out", "layers.0.attn.to_out.0"),
    "omnigen2": ("layers.0.attn.to_out.0", "layers.0.attn.to_out.0", "layers.0.attn.to_out.0"),
}
DOTTED = (
    "", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "unet.", "model.", "module.",
    "base_model.model.transformer.", "base_model.model.diffusion_model.", "transformer.base_model.model.",
    "transformer.diffusion_model.",
)  # fmt: skip
UNDERSCORED = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")


@pytest.mark.parametrize("model", LAYERS)
def test_each_spelling_of_each_model_is_the_same_layer(tiny, model):
    """L03, L18: also half dots and half underscores, as converters leave them."""
    module, *spelled = LAYERS[model]
    shape = tiny(model).shapes[f"{module}.weight"]
    down, up = matrices(*shape)
    names_found = [prefix + name for prefix in DOTTED for name in spelled]
    names_found += [prefix + name.replace(".", "_") for prefix in UNDERSCORED for name in spelled]
    # musubi-tuner's converter keeps the underscores behind the block's number
    names_found += ["diffusion_model." + re_dotted(name) for name in spelled]
    for name in dict.fromkeys(names_found):
        for ends in (KOHYA, OLD_DIFFUSERS, (".lora_A.weight", ".lora_B.weight")):
            found = tiny(model).changes(pair(name, *shape, ends))
            assert found.keys() == {f"{module}.weight"}, name
            assert torch.allclose(found[f"{module}.weight"], up @ down), name


def re_dotted(name: str) -> str:
    """``double_blocks.0.img_attn.qkv`` -> ``double_blocks.0.img_attn_qkv``."""
    block, number, rest = name.split(".", 2)
    return f"{block}.{number}.{rest.replace('.', '_')}"


ADAPTERS = ["default", "default_0", "klein-9b-style", "my style (v2)", "ünï", "0", "v1.0", "a.b.c", "weight"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_may_have_any_name(tiny, adapter):
    """L14: also where other kinds of PEFT's have it."""
    module = "single_blocks.0.linear2"
    own = tiny("flux2_klein_4b")
    rows, columns = own.shapes[f"{module}.weight"]
    down, up = matrices(rows, columns)
    ends = (f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight")
    found = own.changes(pair(f"base_model.model.{module}", rows, columns, ends))
    assert torch.allclose(found[f"{module}.weight"], up @ down)
    dora = pair(f"base_model.model.{module}", rows, columns, ends)
    for end in (f".lora_magnitude_vector.{adapter}.weight", f".lora_magnitude_vector.{adapter}"):
        assert own.open(dora | {f"base_model.model.{module}{end}": torch.ones(rows)}).title == "DoRA"
    w1, w2 = torch.ones(2, 2), torch.ones(rows // 2, columns // 2)
    lokr = {f"{module}.lokr_w1.{adapter}": w1, f"{module}.lokr_w2.{adapter}": w2}
    assert torch.equal(own.changes(lokr)[f"{module}.weight"], torch.ones(rows, columns))


def test_two_spellings_in_one_file_add_up(tiny):
    """L01: the released names beside diffusers', and kohya's ends beside PEFT's."""
    own = tiny("flux2")
    qkv, proj = own.shapes["double_blocks.0.txt_attn.qkv.weight"], own.shapes["double_blocks.0.img_attn.proj.weight"]
    third = (qkv[0] // 3, qkv[1])
    down, up = matrices(*third)
    whole, share = matrices(*proj), up @ down
    tensors = pair("diffusion_model.double_blocks.0.img_attn.proj", *proj)
    tensors |= pair("transformer.transformer_blocks.0.attn.add_k_proj", *third)
    tensors |= pair("lora_unet_transformer_blocks_0_attn_add_v_proj", *third, KOHYA)
    found = own.changes(tensors)
    assert torch.allclose(found["double_blocks.0.img_attn.proj.weight"], whole[1] @ whole[0])
    expected = torch.cat([torch.zeros(third), share, share])
    assert torch.allclose(found["double_blocks.0.txt_attn.qkv.weight"], expected)


def test_z_image_files_with_fused_and_split_layers_in_one_file_add_up(tiny):
    """As in diffusers 13203: another layer each; the same rows twice are refused."""
    own = tiny("zimage")
    rows, columns = own.shapes["layers.0.attention.to_q.weight"]
    tensors = pair("diffusion_model.layers.0.attention.qkv", 3 * rows, columns)
    tensors |= pair("diffusion_model.layers.1.attention.to_q", rows, columns)
    down, up = matrices(3 * rows, columns)
    found = own.changes(tensors)
    assert torch.allclose(found["layers.0.attention.to_k.weight"], up[rows : 2 * rows] @ down)
    with pytest.raises(LoraError, match=r"changes rows 0 to \d+ of 'layers.0.attention.to_q.weight' twice"):
        own.open(tensors | pair("layers.0.attention.to_q", rows, columns))


def test_kinds_in_one_file_add_up(tiny):
    """LyCORIS' presets give each layer its own; on one layer two kinds are two changes."""
    own, module = tiny("omnigen2"), "layers.0.attn.to_out.0"
    rows, columns = own.shapes[f"{module}.weight"]
    down, up = matrices(rows, columns)
    difference = torch.full((rows, columns), 0.5)
    w1, w2 = torch.tensor([[2.0]]), torch.ones(rows, columns)
    tensors = pair(module, rows, columns) | {f"{module}.diff": difference}
    tensors |= {f"{module}.lokr_w1": w1, f"{module}.lokr_w2": w2}
    file = own.open(tensors)
    assert file.title == "LoRA and LoKr"
    assert torch.allclose(own.changes(tensors)[f"{module}.weight"], up @ down + 2.5, atol=1e-5)


DOUBLE = "double_blocks.0.img_attn.norm"
SINGLE = "single_blocks.0.norm"
NORMS = {
    # L10: ComfyUI's own trainer, and diffusers' names
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": f"{DOUBLE}.query_norm.scale",
    "diffusion_model.double_blocks.0.txt_attn.norm.key_norm.diff": "double_blocks.0.txt_attn.norm.key_norm.scale",
    "diffusion_model.single_blocks.0.norm.query_norm.diff": f"{SINGLE}.query_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_q.diff": f"{DOUBLE}.query_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_k.diff": f"{DOUBLE}.key_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_added_q.diff": "double_blocks.0.txt_attn.norm.query_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_added_k.diff": "double_blocks.0.txt_attn.norm.key_norm.scale",
    "transformer.single_transformer_blocks.0.attn.norm_k.diff": f"{SINGLE}.key_norm.scale",
    # LU2: LyCORIS
    "lycoris_double_blocks_0_img_attn_norm_query_norm.w_norm": f"{DOUBLE}.query_norm.scale",
    "lora_unet_single_blocks_0_norm_key_norm.w_norm": f"{SINGLE}.key_norm.scale",
}


@pytest.mark.parametrize("key", NORMS)
def test_differences_of_norms_that_are_called_scale(tiny, key):
    own = tiny("flux2_klein_4b")
    change = torch.linspace(-1, 1, *own.shapes[NORMS[key]])
    assert {name: value.tolist() for name, value in own.changes({key: change}).items()} == {NORMS[key]: change.tolist()}


# merging into quantised weights is refused
HELD = [("merged", "none"), ("live", "none"), ("live", "model default")]


@pytest.mark.parametrize(("application", "quantization"), HELD)
def test_norms_are_changed_in_place_however_the_rest_is_held(engine, tiny, application, quantization):
    own, name = tiny("flux2_klein_4b"), "single_blocks.0.norm.query_norm"
    change = torch.linspace(-1, 1, *own.shapes[f"{name}.scale"])
    file = own.open({f"diffusion_model.{name}.diff": change})
    options = RuntimeOptions(transformer_quantization=quantization)
    base = PipelineHandle(own.model, own.checkpoint, "float32", options)
    spec = LoraSpec(file.header.path.name, file.stamp, 0.5, application, file.title, file.mergeable, file.parts)

    def scale(handle: PipelineHandle) -> torch.Tensor:
        engine.apply_loras(wanted(engine, handle, "trainer preview"), "transformer", SilentObserver())
        with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
            return transformer.get_submodule(name).scale.detach().clone()

    before = scale(base)
    assert torch.equal(scale(base.with_lora(spec)), before + 0.5 * change)
    assert torch.equal(scale(base), before)


def test_a_whole_norm_takes_the_place_of_the_models(tiny):
    """ComfyUI's set_weight."""
    own, name = tiny("flux2_klein_4b"), "single_blocks.0.norm.query_norm"
    value = torch.linspace(-1, 1, *own.shapes[f"{name}.scale"])
    ((layer, adapter),) = read_lora(own.open({f"diffusion_model.{name}.set_weight": value}), "transformer").items()
    assert layer.in_place and torch.equal(adapter.merge(torch.ones_like(value), 0.3, Workspace("cpu")), value)


# ComfyUI's list for FLUX.2 -> (parameter, first and last share of its rows, of how many)
FLUX1 = {
    "transformer.transformer_blocks.0.ff.net.0.proj": ("double_blocks.0.img_mlp.0", 0, 1, 1),
    "lycoris_transformer_blocks_0_ff_net_2": ("double_blocks.0.img_mlp.2", 0, 1, 1),
    "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2", 0, 1, 1),
    "lora_transformer_single_transformer_blocks_0_proj_mlp": ("single_blocks.0.linear1", 3, 9, 9),
    "transformer.single_transformer_blocks.0.proj_out": ("single_blocks.0.linear2", 0, 1, 1),
}


@pytest.mark.parametrize("name", FLUX1)
def test_what_comfyui_calls_flux_2s_layers_as_flux_1s(tiny, name):
    own, (module, first, last, count) = tiny("flux2_klein_4b"), FLUX1[name]
    rows, columns = own.shapes[f"{module}.weight"]
    down, up = matrices((last - first) * rows // count, columns)
    expected = torch.zeros(rows, columns)
    expected[first * rows // count : last * rows // count] = up @ down
    found = own.changes(pair(name, len(up), columns))
    assert found.keys() == {f"{module}.weight"} and torch.allclose(found[f"{module}.weight"], expected)


ALIASES = [
    "transformer.layers.0.attn.to_out.lora_A.weight", "unet.layers.0.attn.processor.to_out.lora_A.weight",
    "transformer.layers.0.attn.processor.to_out_lora.down.weight", "pipe.dit.layers.0.attn.to_out.0.lora_A.weight",
    "lora_unet_layers_0_attn_to_out.lora_down.weight",
]  # fmt: skip


@pytest.mark.parametrize("key", ALIASES)
def test_older_names_of_attention(tiny, key):
    up = key.replace("lora_A", "lora_B").replace("down", "up")
    assert tiny("lumina2").open({key: torch.ones(2, 96), up: torch.ones(96, 2)}).layers[0].parameter == (
        "layers.0.attn.to_out.0.weight"
    )


def test_parameters_without_a_module_take_differences(tiny):
    """ComfyUI's converters name them as they are."""
    for model, name in (("zimage", "x_pad_token"), ("omnigen2", "image_index_embedding")):
        change = torch.ones(tiny(model).shapes[name])
        assert torch.equal(tiny(model).changes({f"diffusion_model.{name}.diff": change})[name], change)


BIASES = {"lumina2": "x_embedder.b_norm", "zimage": "cap_embedder.1.b_norm", "omnigen2": "x_embedder.diff_b"}


@pytest.mark.parametrize("model", BIASES)
def test_differences_of_biases(tiny, model):
    own, (module, _, end) = tiny(model), BIASES[model].rpartition(".")
    change = torch.ones(own.shapes[f"{module}.bias"])
    assert torch.equal(own.changes({f"lycoris_{module.replace('.', '_')}.{end}": change})[f"{module}.bias"], change)


UNUSED = {
    # LU1b: the release has it, and no forward reads it
    "lumina2": {"diffusion_model.norm_final.diff": torch.ones(96), "lora_unet_norm_final.w_norm": torch.ones(96)},
    "zimage": {
        "diffusion_model.norm_final.diff": torch.ones(3),
        "text_encoder.lm_head.lora_A.weight": torch.ones(2, 9),
    },
    # what is no change of any layer
    "flux2": {"global_step": torch.tensor(7), "ema.decay": torch.tensor(0.9), "logit_scale": torch.ones(1)},
    # a scale of nothing; matrices of no ranks, as AdaLoRA leaves them; a rank; OneTrainer's embedding of a word
    "omnigen2": {
        "layers.0.attn.to_q.alpha": torch.tensor(4.0),
        "lora_te_layers_77_mlp_up_proj.alpha": torch.tensor(4.0),
        "layers.1.attn.to_q.lora_A": torch.ones(0, 64),
        "layers.1.attn.to_q.lora_B": torch.ones(64, 0),
        "layers.1.attn.to_q.lora_E": torch.ones(0, 1),
        "diffusion_model.layers.0.attn.to_out.0.rank": torch.tensor(2),
        "bundle_emb.<fox>.qwen": torch.ones(3, 8),
    },
}


@pytest.mark.parametrize("model", UNUSED)
def test_what_changes_nothing_is_skipped_with_a_note(tiny, model):
    own, (module, *_) = tiny(model), LAYERS[model]
    good = pair(f"diffusion_model.{module}", *own.shapes[f"{module}.weight"])
    # skipped keys are not even read
    odd = {key: value * float("nan") for key, value in UNUSED[model].items()}
    file = own.open(good | odd)
    assert own.changes(good | odd).keys() == {f"{module}.weight"}
    assert sum(int(note.split()[1]) for note in file.notes) == len(odd)
    assert all(note in summary(file) for note in file.notes)
    assert not own.open(good).notes


def test_a_file_of_nothing_else_is_refused_by_name(tiny):
    with pytest.raises(LoraError, match=r"'x' changes nothing of Lumina Image 2.0: skipped 1 key, as 'diffusion_mod"):
        tiny("lumina2").open({"diffusion_model.norm_final.diff": torch.ones(96)})
    with pytest.raises(LoraError, match="is no LoRA for"):
        recognise(
            Header(Path("x"), {"a.lora_A.weight": TensorInfo("F32", (2, 2))}, {}), "x", "x",
            names_of("lumina2", tiny("lumina2").checkpoint),
        )  # fmt: skip


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_widened(tiny, dtype):
    """L13: the matrices and alpha."""
    own, module = tiny("flux2_klein_4b"), "single_blocks.0.linear2"
    rows, columns = own.shapes[f"{module}.weight"]
    down, up = (value.to(dtype) for value in matrices(rows, columns))
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    tensors[f"{module}.alpha"] = torch.tensor(1.0).to(dtype)
    found = own.changes(tensors)[f"{module}.weight"]
    assert torch.allclose(found, up.float() @ down.float() * 0.5)


REFUSED = {
    "base_model.model.double_blocks.0.img_attn.qkv.oft_r.default": "holds OFT of another make (oft_diag, oft_r), which",
    "base_model.model.double_blocks.0.img_attn.qkv.vera_lambda_d": "holds VeRA, which is not applied",
    # L15 and its kind: the file's kind, whatever it was trained on
    "lycoris_double_blocks_0_img_attn_qkv.oft_diag": "holds OFT of another make (oft_diag, oft_r), which",
    "double_blocks.0.img_attn.qkv.boft_R": "holds BOFT of PEFT, which is not applied",
    "double_blocks.0.img_attn.qkv.lora_B.bias": "holds biases of a LoRA's own matrices, which is not applied",
    "base_model.model.double_blocks.0.img_attn.qkv.modules_to_save.default.weight": "holds whole weights, which is not",
    "base_model.model.double_blocks.0.img_attn.qkv.lora_B.default.bias": "keys that are of no known kind",
    "double_blocks.0.img_attn.qkv.wonder": "keys that are of no known kind",
    "double_blocks.0.img_attn.qkv.weight": "keys that are of no known kind",
    # what would change something that the model lacks
    "diffusion_model.double_blocks.77.img_attn.qkv.diff": "1 of its 2 layers are not in the model",
    "diffusion_model.double_blocks.0.img_attn.proj.diff_b": "has no bias in the model",
    # L22
    "lora_te_layers_0_self_attn_q_proj.diff": "also changes the text encoder: 1 layer, as 'lora_te_layers_0_self_att",
    "text_encoder.model.layers.0.self_attn.q_proj.diff": "the text encoder's half cannot be applied",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.diff": "the text encoder's half cannot be applied",
    "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.diff": "the text encoder's half cannot be applied",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_change_something_and_is_not_applied_is_refused_by_name(tiny, key):
    own, module = tiny("flux2_klein_4b"), "single_blocks.0.linear2"
    good = pair(f"diffusion_model.{module}", *own.shapes[f"{module}.weight"])
    with pytest.raises(LoraError) as caught:
        own.open(good | {key: torch.ones(4)})
    assert REFUSED[key] in str(caught.value), str(caught.value)


def test_endless_names_are_cut_in_messages(tiny):
    own, module = tiny("flux2_klein_4b"), "single_blocks.0.linear2"
    good = pair(f"diffusion_model.{module}", *own.shapes[f"{module}.weight"])
    for key in (
        "x" * 1000 + ".diff",
        f"{module}.{'y' * 900}",
        "double_blocks.7" + ".z" * 450 + ".lora_A.weight",
    ):
        with pytest.raises(LoraError) as caught:
            own.open(good | {key: torch.ones(4)})
        assert len(str(caught.value)) < 2000


def test_keys_are_taken_apart_at_the_longest_end():
    assert take_apart("a.to_q_lora.down.weight") == ("a.to_q", "lora_A", "")
    assert take_apart("a.lora_linear_layer.up.weight") == ("a", "lora_B", "")
    assert take_apart("a.lora_B.default.weight") == ("a", "lora_B", "")
    assert take_apart("a.lora_A.bias") == ("a", "", "biases of a LoRA's own matrices")
    assert take_apart("lora_A.weight") == ("lora_A.weight", "", "")


def test_many_keys_that_change_nothing_take_no_time(tiny):
    info = TensorInfo("F32", ())
    keys = {f"{kind}{number}": info for number in range(10_000) for kind in ("norm_final.", "step.", "transformer.x")}
    good = {key: TensorInfo("F32", tuple(value.shape)) for key, value in pair("layers.0.attn.to_out.0", 96, 96).items()}
    names = names_of("lumina2", tiny("lumina2").checkpoint)
    begin = time.process_time()
    contents = recognise(Header(Path("x"), good | keys, {}), "x", "x", names)
    assert time.process_time() - begin < 20
    assert len(contents.layers) == 1 and sum(map(len, contents.notes)) < 1000
