"""What the LoRA node's ``info`` tells, line by line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.lora.info import summary, trigger_word
from comfyui_aitk.pipelines.models import find_model
from safetensors.torch import load_file, save_file

MODEL = find_model("lumina2")
OUT = "diffusion_model.layers.0.attention.out"


def opened(path, checkpoint):
    return open_lora(path, path.name, MODEL, checkpoint)


@pytest.fixture
def saved(tmp_path, checkpoint):
    """The summary of a file with these tensors and this metadata."""

    def save(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        return summary(opened(tmp_path / "x.safetensors", checkpoint))

    return save


def test_a_file_of_ai_toolkit(checkpoint, models):
    file = opened(models / "loras" / "tiny.safetensors", checkpoint)
    assert trigger_word(file) == "t1ny"
    assert summary(file).splitlines() == [
        "tiny.safetensors: LoRA, 31 layers, dtype BF16",
        "transformer: 31 layers, rank 4; no alpha (scale 1)",
        "trained with: ai-toolkit 0.12.26",
        "step: 250",
        "base model: lumina2",
        "name: tiny",
        "trigger word: t1ny",
    ]


def test_a_file_of_kohya_s_with_mixed_ranks_and_the_text_encoder(checkpoint, models, tmp_path):
    """Ranks are counted from the tensors: the metadata has one number, and the trainer's options make others of it."""
    path = write_kohya(
        tmp_path / "fox.safetensors",
        models / "diffusers" / "tiny",
        text_encoder=True,
        rank=8,
        ranks=lambda module: 4 if "attention" in module or "self_attn" in module else 8,
    )
    file = opened(path, checkpoint)
    # every caption of the data set is in the metadata, no trigger word
    assert trigger_word(file) == ""
    assert summary(file).splitlines() == [
        "fox.safetensors: LoRA, 46 layers, dtype BF16",
        "transformer: 25 layers, rank 4 (8 layers), rank 8 (17 layers); alpha 2, scale alpha / rank = 0.25 to 0.5",
        "text_encoder: 21 layers, rank 4 (12 layers), rank 8 (9 layers); alpha 2, scale alpha / rank = 0.25 to 0.5",
        "trained with: kohya's sd-scripts",
        "base model: lumina2",
        "name: fox",
        "base model file: lumina2.safetensors",
        "network: networks.lora_lumina",
        "network dim / alpha: 8 / 2.0",
        'network arguments: {"train_blocks": "all"}',
        "timestep sampling: nextdit_shift",
        "weighting: none",
        "discrete flow shift: 6.0",
        "prediction: raw",
        "sigmoid scale: 1.0",
        "steps / epochs: 250",
        "architecture: lumina-2/lora",
        "the system prompt of the training is not in the file: set it on the sampler, recipe sd-scripts",
    ]


def test_alphas_are_told_as_far_as_they_count(saved):
    """A whole LoKr's is a mark of 9999999999 that nothing is multiplied by."""
    whole = {f"{OUT}.lokr_w1": torch.ones(4, 4), f"{OUT}.lokr_w2": torch.ones(24, 24)}
    assert "transformer: 1 layer, full rank; scale 1" in saved(whole | {f"{OUT}.alpha": torch.tensor(9999999999.0)})
    pairs = {
        f"diffusion_model.layers.{index}.attention.out.{name}": value
        for index in range(2)
        for name, value in (("lora_A.weight", torch.ones(2, 96)), ("lora_B.weight", torch.ones(96, 2)))
    }
    assert "2 layers, rank 2; alpha 1, scale alpha / rank = 0.5 (no alpha on 1 layer: scale 1)" in saved(
        pairs | {f"{OUT}.alpha": torch.tensor([1.0])}
    )
    differences = {
        "diffusion_model.x_embedder.diff_b": torch.ones(96),
        "diffusion_model.cap_embedder.0.diff": torch.ones(32),
    }
    assert "2 layers, rank 2; no alpha (scale 1), and 2 plain differences (.diff, .diff_b)" in saved(
        pairs | differences
    )
    assert "LoRA with dora_scale, 2 layers" in saved(pairs | {f"{OUT}.dora_scale": torch.ones(96, 1)})
    assert "x.safetensors: difference, 2 layers, dtype F32\ntransformer: 2 layers, full rank; scale 1" in saved(
        differences
    )


@pytest.mark.parametrize(
    ("metadata", "lines"),
    [
        ({"software": "[1, 2]", "training_info": "{]", "ss_tag_frequency": "null"}, []),
        ({"software": "[" * 100_000}, []),
        ({"ss_tag_frequency": '{"a": 3, "b": ["c"], "d": {"one": 1, "two": 2}}'}, []),
        ({"ss_training_comment": "first\nsecond\x1b[31m\r\n\tthird"}, ["comment: first second [31m third"]),
        ({"ss_training_comment": "x" * 999}, ["comment: " + "x" * 200 + "..."]),
        ({"software": json.dumps({"name": ["a"], "version": 2})}, ["trained with: ['a'] 2"]),
        ({"ss_steps": "None", "ss_num_epochs": "", "ss_network_dim": "8"}, ["network dim / alpha: 8"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_strange_metadata_is_no_trouble(saved, models, metadata, lines):
    found = saved(load_file(models / "loras" / "tiny.safetensors"), metadata).splitlines()
    assert found[2:] == lines


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("x" * 5_000_000, "x" * 200),
        ("a\x1b[31mred\x1b[0m\x00b", "ared b"),
        ("two\r\nlines\ttab", "two lines tab"),
        ("half \ud800 of one", "half of one"),
        ("\u202eright to left", "right to left"),
        (" ohwx woman, <lora:x:1> ", "ohwx woman, <lora:x:1>"),
        ("дракон 龍", "дракон 龍"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_trigger_word_is_cut_and_cleaned(checkpoint, models, word, expected):
    """It goes into prompts, reports and terminals."""
    file = opened(models / "loras" / "tiny.safetensors", checkpoint)
    metadata = {"ss_tag_frequency": json.dumps({"1": {word: 1}})}
    assert trigger_word(replace(file, header=replace(file.header, metadata=metadata))) == expected
