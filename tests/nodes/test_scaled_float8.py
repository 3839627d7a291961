"""ComfyUI's scaled float8 files: the picture is that of their values; what cannot be read is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.tiny import containers
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.layers.packed_linear import PackedLinear
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from rendering import wanted
from safetensors.torch import load_file

ENCODER, VAE = "gemma.safetensors", "ae.safetensors"
PARTS = {"text_encoder": ENCODER, "vae": VAE}
# as written: spelling, prefix, dtype
FILES = {
    "old.safetensors": ("old", "", "float8_e4m3fn"),
    "old_prefixed.safetensors": ("old", "model.diffusion_model.", "float8_e5m2"),
    "new.safetensors": ("new", "", "float8_e4m3fn"),
    "new_prefixed.safetensors": ("new", "model.diffusion_model.", "float8_e5m2"),
    "metadata.safetensors": ("metadata", "", "float8_e4m3fn"),
    "metadata_prefixed.safetensors": ("metadata", "model.diffusion_model.", "float8_e4m3fn"),
}


def _plain(source: Path, target: Path) -> Path:
    """The same values in float32."""
    tensors = load_file(source)
    for name in [name for name in tensors if name.endswith((".scale_weight", ".weight_scale"))]:
        layer = name.rpartition(".")[0]
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].float() * tensors.pop(name)
    endings = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
    return write_tensors(target, {name: value for name, value in tensors.items() if not name.endswith(endings)}, {})


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory) -> Path:
    """A models folder of scaled files, each with its values in ``plain_NAME``. Read only."""
    folder, tiny = tmp_path_factory.mktemp("scaled"), models / "diffusers" / "tiny"
    shutil.copytree(tiny, folder / "diffusers" / "tiny")
    transformers, encoders = folder / "diffusion_models", folder / "text_encoders"
    for name, (spelling, prefix, dtype) in FILES.items():
        plain = containers.write_dit(folder / "unscaled.safetensors", tiny, prefix)
        scaled = containers.write_scaled_float8(transformers / name, plain, spelling, prefix, dtype)
        _plain(scaled, transformers / f"plain_{name}")
    containers.write_dit(transformers / "unscaled.safetensors", tiny)
    containers.write_gemma2(encoders / ENCODER, tiny)
    scaled = containers.write_scaled_float8(encoders / f"scaled_{ENCODER}", encoders / ENCODER, "new")
    _plain(scaled, encoders / f"plain_{ENCODER}")
    containers.write_ae(folder / "vae" / VAE, tiny)
    write_kohya(folder / "loras" / "kohya.safetensors", tiny, text_encoder=True)
    return folder


@pytest.fixture
def everywhere(host, folder: Path) -> PlainHost:
    plain = PlainHost(folder, host.input, host.output, "cpu")
    use_host(plain)
    return plain


def _run(load: dict, dtype: str = "float32", lora: str | None = None):
    graph = {
        "load": {"class_type": "LoadAITKModel", "inputs": {"model": "lumina2", "dtype": dtype, **PARTS, **load}},
        "sample": {
            "class_type": "AITKSampler",
            "inputs": {
                "pipeline": ["load", 0], "prompt": "a red fox", "negative_prompt": "fog", "width": 64, "height": 64,
                "steps": 2, "guidance_scale": 4.0, "seed": 1, "recipe": "trainer preview", "trigger_word": "",
                "system_prompt": "", "batch_size": 1,
            },
        },
        "save": {
            "class_type": "AITKSaveImage",
            "inputs": {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"},
        },
    }  # fmt: skip
    if lora is not None:
        inputs = {"pipeline": ["load", 0], "lora_name": "kohya.safetensors", "strength": 0.8, "application": lora}
        graph["lora"] = {"class_type": "ApplyAITKLoRA", "inputs": inputs}
        graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    return run_prompt(graph, NODE_CLASS_MAPPINGS).results["sample"]


@pytest.mark.parametrize("name", FILES)
def test_a_transformer_gives_the_picture_of_its_values(everywhere, name):
    dtype = "bfloat16" if name == "new.safetensors" else "float32"
    scaled, plain = _run({"weights": name}, dtype), _run({"weights": f"plain_{name}"}, dtype)
    assert torch.equal(scaled[0], plain[0])
    assert torch.equal(scaled[4]["samples"], plain[4]["samples"])
    exact = _run({"weights": "unscaled.safetensors"}, dtype)[4]["samples"]
    error = float((scaled[4]["samples"] - exact).norm() / exact.norm())
    # measured: 0.02 with 3 bits of mantissa, 0.045 with 2
    assert 0 < error < (0.1 if FILES[name][2] == "float8_e5m2" else 0.05), error
    quantization = json.loads(scaled[6])["model"]["quantization"]
    assert quantization == {"transformer": "scaled float8", "text_encoder": "none"}


def test_a_text_encoder_gives_the_picture_of_its_values(everywhere):
    scaled, plain = (
        _run({"weights": "unscaled.safetensors", "text_encoder": f"{kind}_{ENCODER}"}) for kind in ("scaled", "plain")
    )
    assert torch.equal(scaled[0], plain[0])
    assert not torch.equal(scaled[0], _run({"weights": "unscaled.safetensors"})[0])
    assert json.loads(scaled[6])["model"]["quantization"]["text_encoder"] == "scaled float8"


def test_a_lora_runs_live_on_both_parts(everywhere):
    scaled = {"weights": "old.safetensors", "text_encoder": f"scaled_{ENCODER}"}
    plain = {"weights": "plain_old.safetensors", "text_encoder": f"plain_{ENCODER}"}
    with_lora = _run(scaled, lora="auto")
    assert torch.equal(with_lora[0], _run(plain, lora="live")[0])
    assert not torch.equal(with_lora[0], _run(scaled)[0])
    with pytest.raises(AITKError, match=r"cannot be merged: the transformer is quantised \(scaled float8\)"):
        _run(scaled, lora="merged")


def test_it_stays_float8_in_memory_and_is_not_quantised_again(everywhere, folder):
    nodes = NODE_CLASS_MAPPINGS
    load = {"weights": "new.safetensors", **PARTS}
    (pipeline,) = nodes["LoadAITKModel"]().load("lumina2", dtype="float32", **load)
    assert isinstance(pipeline, PipelineHandle)
    engine = Engine(PlainMachine())
    with engine.on_device(wanted(engine, pipeline), "transformer", _Observer()) as module:
        held = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
        stored = load_file(folder / "diffusion_models" / "new.safetensors")
        bytes_stored = sum(value.numel() for value in stored.values() if value.dtype == torch.float8_e4m3fn)
        assert sum(layer.packed.numel() for layer in held) == bytes_stored > 0
        assert all(layer.packed.dtype == torch.uint8 for layer in held)
    (options,) = nodes["AITKRuntimeOptions"]().make("qint8", "none")
    (pipeline,) = nodes["LoadAITKModel"]().load("lumina2", dtype="float32", options=options, **load)
    with pytest.raises(AITKError, match=r"'new.safetensors' is quantised already, and qint8 would quantise"):
        nodes["AITKSampler"]().sample(pipeline, "a", "", 64, 64, 1, 4.0, 1, "reference pipeline")


def test_the_default_quantisation_of_a_model_is_not_for_files_that_have_one(everywhere, monkeypatch):
    default = replace(find_model("lumina2"), quantization={"transformer": "qfloat8", "text_encoder": "qfloat8"})
    monkeypatch.setattr("comfyui_aitk.pipelines.engine.engine.find_model", lambda name: default)
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "new.safetensors", "float32", **PARTS)
    engine = Engine(PlainMachine())
    keys = wanted(engine, pipeline).keys
    assert keys["transformer"].held_as == "scaled float8"
    assert keys["text_encoder"].held_as == "qfloat8"
    with pytest.raises(AITKError, match="scaled float8 is not to be had on Apple's MPS"):
        wanted(Engine(PlainMachine("mps")), _unquantised(pipeline))


def _unquantised(pipeline: PipelineHandle) -> PipelineHandle:
    return replace(pipeline, options=replace(pipeline.options, text_encoder_quantization="none"))


class _Observer:
    def stage(self, text: str) -> None: ...

    def check(self) -> None: ...

    def step(self, *values: object) -> None: ...


LAYER = "layers.0.attention.qkv"


def _said(**said: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


def _without(*names: str) -> Callable[[dict], dict]:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def _with(**leaves: torch.Tensor) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {f"{LAYER}.{leaf}": value for leaf, value in leaves.items()}


BAD = {
    "nvfp4": (
        "new", _with(weight=torch.zeros(192, 48, dtype=torch.uint8), comfy_quant=_said(format="nvfp4")),
        f"the weight of '{LAYER}', U8 [192, 48], and its scales, F32 [], do not fit together as nvfp4. Get",
    ),
    "mxfp8": ("new", _with(comfy_quant=_said(format="mxfp8")), "F8_E4M3 [192, 96], and its scales, F32 [], do not fit"),
    "turned int8": (
        "new", _with(
            weight=torch.zeros(192, 96, dtype=torch.int8), comfy_quant=_said(format="int8_tensorwise", convrot=True)
        ),
        f"the weight of '{LAYER}', I8 [192, 96], and its scales, F32 [], do not fit together as int8_tensorwise",
    ),
    "turned in odd groups": (
        "new", _with(comfy_quant=_said(format="int8_tensorwise", convrot=True, convrot_groupsize=10**9)),
        f"'{LAYER}' is said to be turned in groups of 1000000000 (convrot_groupsize), and 4, 16, 64, 256, 1024 are",
    ),
    "turned in no groups": (
        "new", _with(comfy_quant=_said(format="convrot_w4a4", convrot_groupsize=True)), "groups of True (convrot_gro",
    ),
    "turned float8": ("new", _with(comfy_quant=_said(format="float8_e4m3fn", convrot=True)), "do not fit together as"),
    "a format of a megabyte": (
        "new", _with(comfy_quant=torch.full((1_000_000,), 32, dtype=torch.uint8)), "comfy_quant' has more than 65,536",
    ),
    "a long format": (
        "new", _with(comfy_quant=_said(format="x" * 1000)), f"'{LAYER}' is in {'x' * 57}..., which is not read. Get",
    ),
    "an unknown format": ("new", _with(comfy_quant=_said(format=["x"])), "in a value of type list, which is not"),
    "no format": ("new", _with(comfy_quant=_said(form="x")), f"'{LAYER}' is in None, which is not read"),
    "another dtype than said": (
        "new", _with(comfy_quant=_said(format="float8_e5m2")),
        f"the weight of '{LAYER}', F8_E4M3 [192, 96], and its scales, F32 [], do not fit together as float8_e5m2",
    ),
    "no values": (
        "old", _with(weight=torch.zeros(192, 0, dtype=torch.float8_e4m3fn), scale_weight=torch.ones(192, 1)),
        f"the weight of '{LAYER}', F8_E4M3 [192, 0], and its scales, F32 [192, 1], do not fit",
    ),
    "one value": (
        "old", _with(weight=torch.zeros((), dtype=torch.float8_e4m3fn)), "F8_E4M3 [], and its scales, F32 [], do not",
    ),
    "no scale": ("new", _without(f"{LAYER}.weight_scale"), f"the scale of '{LAYER}' is missing. Download"),
    "no scale, metadata": ("metadata", _without(f"{LAYER}.weight_scale"), f"the scale of '{LAYER}' is missing"),
    "no weight": ("old", _without(f"{LAYER}.weight"), f"'{LAYER}.scale_weight' is the scale of a weight that is miss"),
    "scales of other blocks": (
        "new", _with(weight_scale=torch.ones(12, 6)),
        f"the weight of '{LAYER}', F8_E4M3 [192, 96], and its scales, F32 [12, 6], do not fit together as float8_",
    ),
    "bitsandbytes": (
        "new", _with(**{"weight.absmax": torch.ones(4)}), "holds weights quantised by bitsandbytes, 4-bit (the first",
    ),
    "nvfp4 of another tool": (
        "new", _with(weight_scale_2=torch.ones(())), "quantised by nvfp4 of another tool than ComfyUI's (the first is",
    ),
    "a scale of NaN": ("old", _with(scale_weight=torch.tensor(torch.nan)), f"the scale '{LAYER}.scale_weight' is nan"),
    "a scale of whole numbers": (
        "old", _with(scale_weight=torch.tensor(3)), "and its scales, I64 [], do not fit together as",
    ),
    "int8 of which nothing is said": (
        "old", _with(weight=torch.zeros(192, 96, dtype=torch.int8)), f"of '{LAYER}' is I8 with a scale of F32",
    ),
    "broken JSON": (
        "new", _with(comfy_quant=torch.tensor([123, 34], dtype=torch.uint8)),
        f"'bad.safetensors' is damaged: '{LAYER}.comfy_quant' is not valid JSON. Download it again",
    ),
    "JSON of another kind": (
        "new", _with(comfy_quant=torch.tensor([91, 93], dtype=torch.uint8)), f"'{LAYER}.comfy_quant' is no JSON object",
    ),
    "a value of NaN": (
        "old", _with(weight=torch.full((192, 96), torch.nan).to(torch.float8_e4m3fn)),
        "bad.safetensors transformer is damaged: its tensor 'layers.0.attn.to_q.weight' holds NaN or Inf",
    ),
    "a scale beyond float32": (
        "old", _with(scale_weight=torch.tensor(3e38)), "its tensor 'layers.0.attn.to_q.weight' holds NaN or Inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(host, folder, tmp_path, case):
    spelling, change, message = BAD[case]
    own = tmp_path / "own"
    for kind in ("text_encoders", "vae"):
        shutil.copytree(folder / kind, own / kind)
    source = folder / "diffusion_models" / f"{spelling}.safetensors"
    _rewritten(source, own / "diffusion_models" / "bad.safetensors", change)
    use_host(PlainHost(own, host.input, host.output, "cpu"))
    with pytest.raises(AITKError) as caught:
        _run({"weights": "bad.safetensors"})
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its _quantization_metadata is not valid JSON"),
        ("[]", "its _quantization_metadata is no JSON object"),
        ('{"layers": []}', "its _quantization_metadata names no layers"),
        (
            '{"layers": {"layers.0.attention.qkv": {"format": "int8_tensorwise"}}}',
            "do not fit together as int8_tensorwise",
        ),
    ],
)
def test_bad_metadata(host, folder, tmp_path, text, message):
    tensors = load_file(folder / "diffusion_models" / "metadata.safetensors")
    write_tensors(tmp_path / "own" / "diffusion_models" / "bad.safetensors", tensors, {"_quantization_metadata": text})
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    node = NODE_CLASS_MAPPINGS["LoadAITKModel"]()
    with pytest.raises(AITKError) as caught:
        node.load("lumina2", "bad.safetensors", "float32")
    assert message in str(caught.value), str(caught.value)


def test_what_is_said_of_layers_that_are_not_there_changes_nothing(host, folder, tmp_path):
    """Pruned files keep it."""
    own = tmp_path / "own"
    for kind in ("text_encoders", "vae"):
        shutil.copytree(folder / kind, own / kind)
    source = folder / "diffusion_models" / "metadata.safetensors"
    tensors, layers = load_file(source), {"layers.77.attention.qkv": {"format": "float8_e4m3fn"}}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    write_tensors(own / "diffusion_models" / "pruned.safetensors", tensors, metadata)
    shutil.copy(source, own / "diffusion_models" / "metadata.safetensors")
    use_host(PlainHost(own, host.input, host.output, "cpu"))
    assert torch.equal(_run({"weights": "pruned.safetensors"})[0], _run({"weights": "metadata.safetensors"})[0])


def _rewritten(source: Path, target: Path, change: Callable[[dict], dict]) -> None:
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    write_tensors(target, change(load_file(source)), metadata)
