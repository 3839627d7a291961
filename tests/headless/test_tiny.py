"""The tiny files have the real layouts, the same bytes at every call, and all containers the same values."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny import containers, loras
from comfyui_aitk.headless.tiny.files import read_part
from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint, make_lora, trained_layers
from comfyui_aitk.headless.tiny.q4_k import quantize_q4_k
from comfyui_aitk.headless.tiny.tokenizer import SPECIAL_TOKENS, make_sentencepiece, make_tokenizer
from comfyui_aitk.pipelines.models.lumina2.recipes import PROMPT_MARKER, SYSTEM_PROMPT
from diffusers import AutoencoderKL
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

WIDTH, QKV, FFN, TEXT, HEAD = 96, 192, 512, 32, 24
# original name -> shape; S is a block with modulation, C one of the context refiner. Source: the release's own file
BLOCK = {
    "attention.qkv.weight": (QKV, WIDTH),
    "attention.out.weight": (WIDTH, WIDTH),
    "attention.q_norm.weight": (HEAD,),
    "attention.k_norm.weight": (HEAD,),
    "feed_forward.w1.weight": (FFN, WIDTH),
    "feed_forward.w2.weight": (WIDTH, FFN),
    "feed_forward.w3.weight": (FFN, WIDTH),
    "ffn_norm1.weight": (WIDTH,),
    "ffn_norm2.weight": (WIDTH,),
    "attention_norm1.weight": (WIDTH,),
    "attention_norm2.weight": (WIDTH,),
}
MODULATED = BLOCK | {"adaLN_modulation.1.weight": (4 * WIDTH, WIDTH), "adaLN_modulation.1.bias": (4 * WIDTH,)}
DIT = {
    "x_embedder.weight": (WIDTH, 64),
    "x_embedder.bias": (WIDTH,),
    "t_embedder.mlp.0.weight": (WIDTH, 256),
    "t_embedder.mlp.0.bias": (WIDTH,),
    "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
    "t_embedder.mlp.2.bias": (WIDTH,),
    "cap_embedder.0.weight": (TEXT,),
    "cap_embedder.1.weight": (WIDTH, TEXT),
    "cap_embedder.1.bias": (WIDTH,),
    "final_layer.adaLN_modulation.1.weight": (WIDTH, WIDTH),
    "final_layer.adaLN_modulation.1.bias": (WIDTH,),
    "final_layer.linear.weight": (64, WIDTH),
    "final_layer.linear.bias": (64,),
    "norm_final.weight": (WIDTH,),
    **{f"{b}.{n}": s for b in ("layers.0", "layers.1", "noise_refiner.0") for n, s in MODULATED.items()},
    **{f"context_refiner.0.{name}": shape for name, shape in BLOCK.items()},
}
SPIECE = "spiece_model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "lumina2")


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_small_and_says_what_tensors_do_not_as_the_real_one(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3.5e6
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in ("transformer", "vae")}
    dit, vae = configs["transformer"], configs["vae"]
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert dit["axes_dim_rope"] == [HEAD // 3] * 3
    assert (dit["axes_lens"], dit["norm_eps"], dit["multiple_of"]) == ([300, 512, 512], 1e-5, 256)
    assert dit["num_attention_heads"] > dit["num_kv_heads"]
    assert (text["head_dim"], text["query_pre_attn_scalar"], text["sliding_window"]) == (256, 256, 4096)
    assert (text["attn_logit_softcapping"], text["rms_norm_eps"]) == (50.0, 1e-6)
    assert (text["pad_token_id"], text["eos_token_id"], text["bos_token_id"]) == (0, 1, 2)
    assert text["vocab_size"] == len(make_tokenizer())
    assert (vae["norm_num_groups"], vae["scaling_factor"], vae["shift_factor"]) == (32, 0.3611, 0.1159)
    assert len(vae["block_out_channels"]) == 4
    assert len(trained_layers(folder)) == 31


def test_the_same_seed_makes_the_same_bytes_and_leaves_torchs_own_alone(tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        state = torch.get_rng_state()
        folder = make_checkpoint(tmp_path / name / "lumina2", seed)
        assert torch.equal(state, torch.get_rng_state())
        files = tmp_path / name / "files"
        containers.write_all_in_one(files / "all.safetensors", folder)
        containers.write_pth(files / "dit.pth", folder)
        containers.write_gguf(files / "dit.gguf", folder, "Q4_K")
        loras.write_kohya(files / "kohya.safetensors", folder, text_encoder=True)
        make_lora(files / "lora.safetensors", folder)
        return {
            str(file.relative_to(tmp_path / name)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }

    first, again, other = digests("a", 0), digests("b", 0), digests("c", 5)
    assert first == again
    same = {name for name in first if first[name] == other[name]}
    # a LoRA is made from its own seed and the shapes alone
    assert {name for name in same if name.endswith((".safetensors", ".gguf", ".pth"))} == {
        "files/kohya.safetensors",
        "files/lora.safetensors",
    }


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_has_gemmas_ids_and_leaves_room_for_a_prompt():
    pieces = SentencePieceProcessor(model_proto=make_sentencepiece())
    assert [pieces.id_to_piece(token) for token in range(4)] == list(SPECIAL_TOKENS)
    assert (pieces.pad_id(), pieces.eos_id(), pieces.bos_id(), pieces.unk_id()) == (0, 1, 2, 3)
    assert len(make_tokenizer()(SYSTEM_PROMPT + PROMPT_MARKER + "a photo of a red fox in the snow").input_ids) < 64


@pytest.fixture(scope="module")
def tokenizers(folder):
    return (
        SentencePieceProcessor(model_proto=make_sentencepiece()),
        make_tokenizer(),
        AutoTokenizer.from_pretrained(str(folder / "tokenizer")),
    )


_WORDS = [
    "a photo",
    "prompts",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\n\n\n",
    "<mask>",
    "<2mass>",
    "<",
    "▁",
    "é",
    "🦊",
    "2024",
    "<0x41>",
]


@settings(max_examples=300)
@given(text=st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=3))).map("".join)))
def test_both_shapes_of_the_tokenizer_give_the_same_ids(tokenizers, text):
    assume(not any(token in text for token in SPECIAL_TOKENS))
    pieces, made, read = tokenizers
    expected = [pieces.bos_id(), *pieces.encode(text)]
    assert made(text).input_ids == expected
    assert read(text).input_ids == expected


# --- single files -----------------------------------------------------------------------------------------------------


def test_the_transformer_has_the_original_names_and_shapes(folder, tmp_path):
    tensors = load_file(containers.write_dit(tmp_path / "dit.safetensors", folder))
    assert _shapes(tensors) == DIT
    diffusers = read_part(folder, "transformer")
    q, k, v = tensors["layers.1.attention.qkv.weight"].split([WIDTH, QKV // 4, QKV // 4])
    for part, value in {"to_q": q, "to_k": k, "to_v": v}.items():
        assert torch.equal(value, diffusers[f"layers.1.attn.{part}.weight"])
    for original, ours in {
        "t_embedder.mlp.2.bias": "time_caption_embed.timestep_embedder.linear_2.bias",
        "cap_embedder.0.weight": "time_caption_embed.caption_embedder.0.weight",
        "final_layer.adaLN_modulation.1.weight": "norm_out.linear_1.weight",
        "layers.0.attention_norm1.weight": "layers.0.norm1.norm.weight",
        "context_refiner.0.attention_norm1.weight": "context_refiner.0.norm1.weight",
        "noise_refiner.0.attention_norm2.weight": "noise_refiner.0.norm2.weight",
        "layers.0.feed_forward.w3.weight": "layers.0.feed_forward.linear_3.weight",
    }.items():
        assert torch.equal(tensors[original], diffusers[ours])
    prefixed = load_file(containers.write_dit(tmp_path / "p.safetensors", folder, "model.diffusion_model."))
    assert _same(prefixed, {f"model.diffusion_model.{name}": value for name, value in tensors.items()})
    pickled = torch.load(containers.write_pth(tmp_path / "consolidated.00-of-01.pth", folder), weights_only=True)
    assert _same(pickled, tensors)


def test_gemma2_has_its_tokenizer_inside(folder, tmp_path):
    tensors = load_file(containers.write_gemma2(tmp_path / "gemma.safetensors", folder))
    assert tensors[SPIECE].dtype == torch.uint8
    assert tensors.pop(SPIECE).numpy().tobytes() == make_sentencepiece()
    assert tensors["model.layers.2.self_attn.q_proj.weight"].shape == (2 * 256, TEXT)
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (256, TEXT)
    assert "model.layers.0.post_feedforward_layernorm.weight" in tensors
    assert _same(tensors, {f"model.{name}": value for name, value in read_part(folder, "text_encoder").items()})


def test_diffusers_reads_the_autoencoder(folder, tmp_path):
    path = containers.write_ae(tmp_path / "ae.safetensors", folder)
    names = set(load_file(path))
    for name in (
        "encoder.down.1.block.0.nin_shortcut.weight",
        "decoder.up.3.upsample.conv.weight",
        "decoder.mid.block_2.norm1.bias",
        "encoder.norm_out.weight",
    ):
        assert name in names
    assert "decoder.up.0.upsample.conv.weight" not in names
    assert load_file(path)["decoder.mid.attn_1.proj_out.weight"].shape == (32, 32, 1, 1)
    vae = AutoencoderKL.from_single_file(
        str(path), config=str(folder), subfolder="vae", torch_dtype=torch.bfloat16, local_files_only=True
    )
    assert _same(vae.state_dict(), read_part(folder, "vae"))


def test_an_all_in_one_file_is_its_parts_under_prefixes(folder, tmp_path):
    tensors = load_file(containers.write_all_in_one(tmp_path / "all.safetensors", folder))
    parts = {
        "model.diffusion_model.": load_file(containers.write_dit(tmp_path / "dit.safetensors", folder)),
        "vae.": load_file(containers.write_ae(tmp_path / "ae.safetensors", folder)),
        "text_encoders.gemma2_2b.transformer.": load_file(containers.write_gemma2(tmp_path / "g.safetensors", folder)),
    }
    blob = parts["text_encoders.gemma2_2b.transformer."].pop(SPIECE)
    expected = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    assert tensors.pop("text_encoders.gemma2_2b.logit_scale").shape == ()
    assert _same(tensors, expected | {f"text_encoders.{SPIECE}": blob})


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize(("quant", "least", "most"), [("Q4_0", 0.05, 0.1), ("Q8_0", 1e-3, 0.01), ("BF16", 0, 0)])
def test_gguf_gives_the_weights_back(folder, tmp_path, quant, least, most, names):
    _check_gguf(folder, tmp_path, quant, names, {quant: (least, most)})


def test_q4_k_gives_the_weights_back_and_leaves_short_rows_to_q8_0(folder, tmp_path):
    kinds = _check_gguf(folder, tmp_path, "Q4_K", "original", {"Q4_K": (0.05, 0.1), "Q8_0": (1e-3, 0.01)})
    assert {name for name, kind in kinds.items() if kind == "Q4_K"} == {n for n in DIT if n.endswith("w2.weight")}


def _check_gguf(folder, tmp_path, quant, names, errors) -> dict[str, str]:
    """Reads a file with the gguf package and compares; tensor -> type."""
    containers.write_dit(tmp_path / "dit.safetensors", folder)
    weights = load_file(tmp_path / "dit.safetensors") if names == "original" else read_part(folder, "transformer")
    reader = gguf.GGUFReader(containers.write_gguf(tmp_path / "dit.gguf", folder, quant, names))
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"lumina2"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds.keys() == weights.keys()
    for tensor in reader.tensors:
        value, kind = weights[tensor.name].float().numpy(), kinds[tensor.name]
        assert list(tensor.shape[::-1]) == list(value.shape)
        assert (kind == "F32") == (value.ndim == 1)
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        error = np.linalg.norm(read - value) / np.linalg.norm(value)
        least, most = errors.get(kind, (0, 1e-6))
        assert least <= error <= most, tensor.name
    return kinds


@pytest.mark.parametrize("values", ["normal", "zero", "positive", "negative", "tiny"])
def test_q4_k_of_any_block_is_within_a_step(values):
    normal = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    made = {
        "normal": normal,
        "zero": normal * 0,
        "positive": np.abs(normal) + 3,
        "negative": -np.abs(normal) - 3,
        "tiny": normal * 1e-3,
    }[values]
    read = gguf.quants.dequantize(quantize_q4_k(made), gguf.GGMLQuantizationType.Q4_K)
    reach = np.maximum(made.reshape(-1, 256).max(1), 0) - np.minimum(made.reshape(-1, 256).min(1), 0)
    # half of one of 15 steps over the block's reach, and what 6 bits take from the step
    assert (np.abs(read - made).reshape(-1, 256) <= reach[:, None] * (0.5 / 15 + 1.5 / 63)).all()


# --- LoRAs ------------------------------------------------------------------------------------------------------------

ROLES = (".lora_down.weight", ".lora_up.weight", ".alpha")


def test_kohyas_file_has_its_keys_its_metadata_and_both_halves(folder, tmp_path):
    path = loras.write_kohya(tmp_path / "fox.safetensors", folder, text_encoder=True, embedders=True)
    tensors = load_file(path)
    modules = {re.sub(r"\.(lora_down\.weight|lora_up\.weight|alpha)$", "", key) for key in tensors}
    assert {module + role for module in modules for role in ROLES} == set(tensors)
    blocks = {name.removesuffix(".weight") for name, shape in DIT.items() if len(shape) == 2}
    text = {f"layers.{n}.self_attn.{p}_proj" for n in range(3) for p in "qkvo"}
    text |= {f"layers.{n}.mlp.{p}_proj" for n in range(3) for p in ("gate", "up", "down")}
    assert modules == {"lora_unet_" + name.replace(".", "_") for name in blocks} | {
        "lora_te_" + name.replace(".", "_") for name in text
    }
    assert tensors["lora_unet_layers_0_attention_qkv.lora_up.weight"].shape == (QKV, 4)
    assert tensors["lora_unet_layers_0_attention_qkv.alpha"].shape == ()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora_lumina"
    assert metadata["modelspec.architecture"] == "lumina-2/lora"
    assert (metadata["ss_base_model_version"], metadata["ss_output_name"]) == ("lumina2", "fox")
    assert len(load_file(loras.write_kohya(tmp_path / "plain.safetensors", folder))) == 3 * (3 * 6 + 5 + 2)


def test_ranks_alpha_and_subsets(folder, tmp_path):
    def ranks(name: str) -> int:
        return 2 if "attention" in name else 0 if "adaLN" in name else 6

    tensors = load_file(
        loras.write_kohya(
            tmp_path / "x.safetensors", folder, ranks=ranks, alpha=None, dtype=torch.float16, only=["layers.1."]
        )
    )
    assert {len(v) for k, v in tensors.items() if "lora_down" in k and "attention" in k} == {2}
    assert {len(v) for k, v in tensors.items() if "lora_down" in k and "feed_forward" in k} == {6}
    assert len(tensors) == 2 * 5
    assert {value.dtype for value in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up")], ids=lambda names: names[0])
@pytest.mark.parametrize("alpha", [True, False])
def test_every_format_has_the_same_deltas(folder, tmp_path, names, alpha):
    pairs = loras.make_pairs(folder, embedders=True)
    comfyui = load_file(loras.write_comfyui(tmp_path / "c.safetensors", pairs, names=names, alpha=alpha))
    kohya = load_file(loras.write_kohya(tmp_path / "k.safetensors", folder, embedders=True))
    diffusers = load_file(loras.write_diffusers(tmp_path / "d.safetensors", pairs, folder, alpha=alpha))
    assert len(comfyui) == len(pairs) * (3 if alpha else 2)

    def delta(tensors, key, down, up):
        matrix = tensors[f"{key}.{up}.weight"].float() @ tensors[f"{key}.{down}.weight"].float()
        return matrix * tensors.get(f"{key}.alpha", torch.tensor(4.0)).float() / 4

    for module, pair in pairs.items():
        expected = pair.delta()
        assert torch.equal(delta(comfyui, f"diffusion_model.{module}", *names), expected)
        assert torch.equal(delta(kohya, f"lora_unet_{module.replace('.', '_')}", "lora_down", "lora_up"), expected)
    parts = [delta(diffusers, f"transformer.layers.1.attn.to_{part}", "lora_A", "lora_B") for part in "qkv"]
    assert [len(part) for part in parts] == [WIDTH, QKV // 4, QKV // 4]
    assert torch.allclose(torch.cat(parts), pairs["layers.1.attention.qkv"].delta(), atol=1e-6)
    modules = {key.rpartition(".lora_A")[0].removeprefix("transformer.") for key in diffusers if "lora_A" in key}
    assert set(trained_layers(folder)) < modules
    assert len(modules) == len(pairs) + 2 * 4  # q, k and v of four blocks
