"""What diffusers offers for its own models works on FLUX.2's transformer as well."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.layers.attention import kernel
from comfyui_aitk.pipelines.models.flux2.attention import JointAttention
from comfyui_aitk.pipelines.models.flux2.network import DoubleStreamBlock, Flux2Transformer, SingleStreamBlock
from comfyui_aitk.pipelines.models.flux2.tokens import image_ids, text_ids


@pytest.fixture
def transformer() -> Flux2Transformer:
    torch.manual_seed(0)
    model = Flux2Transformer(
        context_in_dim=24, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=(8, 8, 8, 8)
    )
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(1, 20, 128, generator=generator).bfloat16(),
        "x_ids": image_ids(4, 5),
        "timesteps": torch.tensor([0.7]).bfloat16(),
        "ctx": torch.randn(1, 12, 24, generator=generator).bfloat16(),
        "ctx_ids": text_ids(12),
        "guidance": torch.tensor([4.0]).bfloat16(),
    }


def test_saved_and_loaded_by_diffusers_it_gives_the_same_bits(transformer, tmp_path):
    expected = transformer(**_inputs())
    transformer.save_pretrained(tmp_path)
    again = Flux2Transformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert torch.equal(again(**_inputs()), expected)


def test_another_backend_is_called_and_the_reference_is_torchs_whatever_is_set(transformer):
    expected = transformer(**_inputs())
    transformer.set_attention_backend("_native_math")
    processors = [m.processor for m in transformer.modules() if isinstance(m, JointAttention)]
    assert len(processors) == 2
    assert {processor._attention_backend.value for processor in processors} == {"_native_math"}
    near = transformer(**_inputs())
    assert 0 < (near - expected).abs().max() < 0.1
    with kernel(transformer, "default"):
        assert torch.equal(transformer(**_inputs()), expected)
    assert {processor._attention_backend.value for processor in processors} == {"_native_math"}, "as it was"


def test_layerwise_casting_stores_float8_and_leaves_the_norms(transformer):
    expected = transformer(**_inputs())
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert transformer.double_blocks[0].img_attn.qkv.weight.dtype == torch.float8_e4m3fn
    assert transformer.single_blocks[0].norm.query_norm.scale.dtype == torch.bfloat16
    assert 0 < (transformer(**_inputs()) - expected).norm() / expected.norm() < 0.2


def test_blocks_compile_by_themselves_and_leave_the_model_for_their_turn(transformer):
    expected = transformer(**_inputs())
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    compiled = [m for m in transformer.modules() if isinstance(m, DoubleStreamBlock | SingleStreamBlock)]
    assert all(block._compiled_call_impl is not None for block in compiled)
    assert torch.equal(transformer(**_inputs()), expected)


def test_groups_of_blocks_can_be_offloaded(transformer):
    from diffusers.hooks import apply_group_offloading

    expected = transformer(**_inputs())
    cpu = torch.device("cpu")
    apply_group_offloading(
        transformer, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    assert torch.equal(transformer(**_inputs()), expected)


def test_two_processes_share_the_tokens():
    script = Path(__file__).with_name("flux2_context_parallel.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found = re.search(r"tokens (\d+) of 20, difference (\S+)", result.stdout)
    assert found is not None
    assert int(found[1]) == 10
    assert 0 <= float(found[2]) < 1e-5
