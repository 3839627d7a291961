"""AI Toolkit's own OmniGen2 previews, recorded on a tiny checkpoint, against the package's functions by stages."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny import omnigen2 as tiny
from comfyui_aitk.pipelines.errors import FileError, InputError
from comfyui_aitk.pipelines.layers.attention import kernel
from comfyui_aitk.pipelines.models import find_model, load_model
from comfyui_aitk.pipelines.models.model import Denoising, Job, Typed
from comfyui_aitk.pipelines.models.omnigen2 import loop, pixels
from comfyui_aitk.pipelines.models.omnigen2.recipes import REFERENCE, TRAINER
from comfyui_aitk.pipelines.models.omnigen2.schedule import OmniGen2Schedule, times
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.parts.encoder import Embedding, Text
from comfyui_aitk.pipelines.parts.language_model.encoder import EncoderSettings
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.pictures.sizes import Size, snap
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from cpu_kernels import NOISE
from PIL import Image
from rendering import denoising
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "omnigen2"
MODEL = find_model("omnigen2")
CODE = load_model(MODEL)
CASES = {case["name"]: case for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
LARGE = "size_1040x1040_control_1"
FOX = Typed("a fox")
# largest absolute differences on another CPU, from the recordings' own page; an order above the measured spread
EMBEDS, PREDICTION, LATENTS, TIMES, PIXELS = 1e-4, 5e-5, 2e-4, 1e-6, 2e-4
SYSTEM = (
    "<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user instructions."
    "<|im_end|>\n<|im_start|>user\n"
)


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "base", "base", MODEL.files)


@pytest.fixture(scope="module")
def parts(golden):
    return {part: _load(golden, part) for part in MODEL.files.parts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("omnigen2") / "tiny")


def _load(checkpoint: Checkpoint, part: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    CODE.parts[part].check_files(checkpoint.source(part))
    return CODE.parts[part].load(checkpoint.source(part), dtype, "none", (), SilentObserver())


def _merge(transformer: torch.nn.Module, lora: Path, strength: float) -> None:
    tensors = load_file(lora)
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            delta = tensors[f"{module}.lora_B.weight"].float() @ tensors[key].float()
            transformer.get_submodule(module.removeprefix("diffusion_model.")).weight.data += strength * delta


def _job(checkpoint, recipe, size, guidance, typed=FOX, images=(), dtype="float32") -> Job:
    return Job(
        recipe, checkpoint, dtype, RuntimeOptions(), {}, size, guidance, typed,
        tuple(Picture.of(image[None] / 255) for image in images),
    )  # fmt: skip


def _encode(encoder, text):
    return CODE.parts["text_encoder"].encode(encoder, text, "cpu")


def _denoise(transformer, picture):
    return CODE.denoise(lambda part: transformer, picture)


@pytest.mark.parametrize("name", [name for name in CASES if "lokr" not in name and name != LARGE])
@torch.no_grad()
def test_every_stage_agrees_with_ai_toolkit(name, golden, parts):
    case = CASES[name]
    recorded = Recorded(load_file(GOLDEN / case["tensors"]))
    embeds = load_file(GOLDEN / "embeds.safetensors")
    reference = case["kind"] == "reference"
    recipe = TRAINER
    if reference:
        # recorded with the trainer's texts
        recipe = replace(
            REFERENCE,
            template_empty_negative_twice=True,
            image_guidance_scale=case.get("image_guidance", 1.0),
        )
    size = snap(case["width"], case["height"], recipe.size, CODE.largest_side(golden))
    images = _images(case)
    job = _job(golden, recipe, size, case["guidance"], Typed(case["prompt"], case["negative_prompt"]), images)
    texts = CODE.texts(job)
    assert len(texts) == (2 if case["guidance"] > 1 else 1)
    conditioning = [_encode(parts["text_encoder"], text) for text in texts]
    for embedding, name in zip(conditioning, ("prompt", "negative"), strict=False):
        assert torch.equal(embedding.mask, embeds[case["embeds"][f"{name}_mask"]])
        assert _distance(embedding.embeds, embeds[case["embeds"][f"{name}_embeds"]]) < EMBEDS

    generator = torch.Generator().manual_seed(case["seed"])
    posterior = generator
    if reference or "own_generator" in case["kind"]:
        posterior = torch.Generator().manual_seed(case["seed"])
    for index, image in enumerate(images):
        recorded.near(f"ref_pixels_{index}", pixels.prepare(image, recipe, size), TIMES)
    control = CODE.encode_references(parts["vae"], job, posterior, "cpu")
    for index, latents in enumerate(control):
        recorded.near(f"ref_latents_{index}", latents, PREDICTION)

    noise = CODE.noise(generator, job)
    recorded.near("initial_noise", noise, NOISE)
    schedule = CODE.schedule(job, case["steps"])
    recorded.near("timesteps", schedule.times, 0)
    recorded.near("model_timestep_step0", schedule.times[:1], 0)

    transformer = parts["transformer"]
    if case["lora"]:
        transformer = _load(golden, "transformer")
        _merge(transformer, GOLDEN / case["lora"], case["lora_multiplier"])
    picture = denoising(job, noise, schedule, conditioning, references=control)
    prediction = loop.predict(transformer, noise, schedule.times[0], picture)
    recorded.near("pred_cond_step0", prediction.cond, PREDICTION)
    recorded.near("pred_negative_step0" if prediction.bare is not None else "pred_uncond_step0", prediction.negative)
    recorded.near("pred_negative_no_image_step0", prediction.bare)
    recorded.near("pred_step0", prediction.guided, PREDICTION)
    latents = _denoise(transformer, picture)
    recorded.near("final_latents", latents, LATENTS)
    recorded.near("vae_decode_input", CODE.to_comfy(latents, golden), LATENTS)

    # without the size asked for: the autoencoder's picture before it is resized
    for key, shown in (("image_float", Size(*pixels.rendered(size))), ("image_resized_float", size)):
        recorded.near(key, pixels.decode(parts["vae"], latents, shown), PIXELS)
    recorded.picture(CODE.decode(parts["vae"], latents, job))
    assert recorded.keys() == recorded.compared


@torch.no_grad()
def test_the_reference_of_a_large_picture_is_capped(golden, parts):
    """The autoencoder's norms sum so many float32 values here that builds of torch differ by 3e-3."""
    recorded = Recorded(load_file(GOLDEN / CASES[LARGE]["tensors"]))
    images, size, generator = _images(CASES[LARGE]), Size(1040, 1040), torch.Generator().manual_seed(42)
    recorded.near("ref_pixels_0", pixels.prepare(images[0], TRAINER, size), TIMES)
    job = _job(golden, TRAINER, size, 4.0, images=images)
    (latents,) = CODE.encode_references(parts["vae"], job, generator, "cpu")
    recorded.near("ref_latents_0", latents, 1e-2)
    # the posterior was drawn first, from the same generator
    recorded.near("initial_noise", CODE.noise(generator, job), NOISE)


def _images(case: dict) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(Image.open(GOLDEN / name).convert("RGB"))) for name in case["control_images"]]


class Recorded(dict):
    """The stages of a case; of the large ones only their shape, every eighth value and a corner are kept."""

    def __init__(self, stages: dict[str, torch.Tensor]) -> None:
        super().__init__(stages)
        self.compared: set[str] = set()

    def near(self, name: str, ours: torch.Tensor | None, tolerance: float = PREDICTION) -> None:
        """What is kept of one stage, which may be nothing: a test asks at its end whether every key was `compared`."""
        if f"{name}_shape" in self:
            self.compared.add(f"{name}_shape")
            assert list(ours.shape) == self[f"{name}_shape"].tolist()
        kept = {
            name: lambda value: value,
            f"{name}_every8": lambda value: value[..., ::8, ::8],
            f"{name}_corner": lambda value: value[..., :32, :32],
        }
        for key, cut in kept.items():
            if key in self:
                self.compared.add(key)
                assert _distance(cut(ours), self[key]) <= tolerance, key

    def picture(self, ours: torch.Tensor) -> None:
        """The bytes: one 255th apart at most, and equal but for one in a hundred."""
        kept = {
            "image_uint8": ours,
            "image_uint8_every8": ours[::8, ::8],
            "image_uint8_corner": ours[:32, :32],
            "image_uint8_shape": torch.tensor(ours.shape),
        }
        for key in self.keys() & kept.keys():
            self.compared.add(key)
            difference = (kept[key].int() - self[key].int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 0.01


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max())


@pytest.mark.parametrize("latent_pixels", [64, 96, 126 * 126, 128 * 128])
@pytest.mark.parametrize(("steps", "denoise"), [*product((1, 3, 25, 100), (1, 0.99, 0.5, 0.1, 0.01)), (9999, 0.02)])
def test_the_end_of_a_schedule_keeps_every_bit_of_its_times(steps, denoise, latent_pixels):
    whole = int(steps / denoise)
    end = OmniGen2Schedule.of(whole, latent_pixels).last(steps)
    assert torch.equal(end.times, times(whole, latent_pixels)[-(steps + 1) :])
    assert torch.equal(end.sigmas, 1 - end.times)
    assert len(end.sigmas) == steps + 1


def test_the_templates_of_both_recipes(golden):
    end = "<|im_end|>\n"

    def texts(recipe, negative, system=""):
        job = _job(golden, recipe, Size(64, 64), 4.0, Typed("a cat", negative, system))
        return [text.text for text in CODE.texts(job)]

    twice = SYSTEM + SYSTEM + "{}" + end + end
    assert texts(TRAINER, "") == [twice.format("a cat"), twice.format("")]
    assert texts(REFERENCE, "") == [twice.format("a cat"), SYSTEM + end]
    assert texts(REFERENCE, "fog") == texts(TRAINER, "fog") == [twice.format("a cat"), twice.format("fog")]
    own = "<|im_start|>system\nDraw." + end + "<|im_start|>user\n"
    assert texts(TRAINER, "", "Draw.")[0] == own + own + "a cat" + end + end


@torch.no_grad()
def test_long_texts_lose_their_end(parts):
    encoder = parts["text_encoder"]
    text = SYSTEM + "fox " * 300
    embedding = _encode(encoder, Text(text, 256, EncoderSettings()))
    assert embedding.embeds.shape[1] == embedding.mask.shape[1] == 256
    assert embedding.cut_tokens == len(encoder.tokenizer(text, None)) - 256 > 0
    whole = _encode(encoder, Text(text, 1000, EncoderSettings()))
    assert torch.allclose(embedding.embeds, whole.embeds[:, :256], atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "rendered"),
    [
        ((64, 64), (64, 64)),
        ((72, 104), (64, 96)),
        ((1000, 1000), (992, 992)),
        ((1024, 1024), (1024, 1024)),
        ((1040, 1040), (1008, 1008)),
        ((1280, 1280), (1024, 1024)),
        ((1536, 1024), (1248, 832)),
    ],
)
def test_sizes_that_are_rendered(asked, rendered):
    assert pixels.rendered(Size(*asked)) == rendered


def test_references_keep_their_own_size_and_their_order():
    tall, wide = torch.zeros(1300, 700, 3, dtype=torch.uint8), torch.full((70, 2000, 3), 255, dtype=torch.uint8)
    size = Size(64, 64)
    assert pixels.prepare(tall, REFERENCE, size).shape == (1, 3, 1024, 544)
    assert pixels.prepare(wide, REFERENCE, size).shape == (1, 3, 32, 1024)
    assert pixels.prepare(wide, TRAINER, size).shape == (1, 3, 64, 64)
    with pytest.raises(InputError, match="Control image 2 is 15 x 900"):
        pixels.check_size(15, 900, 2)


@torch.no_grad()
def test_the_loop_asks_before_each_call_and_shows_clean_latents(golden, parts):
    size = Size(64, 64)
    texts = [Embedding(torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.int64), 0)] * 2
    job, asked, shown = _job(golden, TRAINER, size, 4.0), [], []
    noise = CODE.noise(torch.Generator().manual_seed(0), job)
    picture = Denoising(
        job, noise, CODE.schedule(job, 3), texts, lambda *step: shown.append(step), lambda: asked.append(1)
    )
    final = _denoise(parts["transformer"], picture)
    assert len(asked) == 6
    assert [step for step, _ in shown] == [1, 2, 3]
    # after the last step the estimate is the result
    assert torch.allclose(shown[-1][1], final, atol=1e-5)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _denoise(parts["transformer"], replace(picture, check=interrupt))


@torch.no_grad()
def test_another_backend_of_the_dispatcher_is_used_and_taken_back(parts):
    transformer = parts["transformer"]
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 16, 8, 8, generator=generator), torch.randn(1, 7, 32, generator=generator)
    references = [torch.randn(16, *side, generator=generator) for side in ((4, 6), (8, 2))]
    expected = transformer(latents, torch.tensor([0.3]), text, references)
    used = []
    hook = transformer.layers[0].attn.register_forward_hook(
        lambda module, args, output: used.append(module.processor._attention_backend)
    )
    with kernel(transformer, "_native_math"):
        other = transformer(latents, torch.tensor([0.3]), text, references)
    transformer(latents, torch.tensor([0.3]), text, references)
    hook.remove()
    assert [backend and backend.value for backend in used] == ["_native_math", None]
    assert _distance(other, expected) < PREDICTION


def test_tiny_files_are_the_same_at_every_call(folder, tmp_path):
    again = tiny.make_checkpoint(tmp_path / "again")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(files) > 8
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


@torch.no_grad()
def test_single_files_give_the_picture_of_the_folder(folder, tmp_path):
    """As ComfyUI has them: the transformer's own names, the whole Qwen2.5-VL, FLUX.1's autoencoder."""
    transformer, encoder, vae = tiny.write_single_files(tmp_path, folder)
    found = {}
    for path in (transformer, encoder, vae):
        found |= open_single_file(path, path.name, MODEL.files)
    singles = Checkpoint.assemble(transformer.name, found, MODEL.files)
    whole = Checkpoint.open(folder, "tiny", MODEL.files)
    text = Text(SYSTEM + "a fox", 256, EncoderSettings(cast_rope=True))
    pictures = []
    for checkpoint in (whole, singles):
        loaded = {part: _load(checkpoint, part, torch.bfloat16) for part in MODEL.files.parts}
        embedding = _encode(loaded["text_encoder"], text)
        job = _job(checkpoint, TRAINER, Size(64, 64), 1.0, dtype="bfloat16")
        noise = CODE.noise(torch.Generator().manual_seed(1), job)
        picture = denoising(job, noise, CODE.schedule(job, 2), [embedding])
        pictures.append(CODE.decode(loaded["vae"], _denoise(loaded["transformer"], picture), job))
    assert torch.equal(*pictures)
    assert pictures[0].float().std() > 10


def test_lora_names_fit(folder, tmp_path):
    lora = tiny.make_lora(tmp_path / "lora.safetensors", folder)
    modules = set(dict(_load(Checkpoint.open(folder, "tiny", MODEL.files), "transformer").named_modules()))
    keys = list(load_file(lora))
    assert all(part in "\n".join(keys) for part in MODEL.lora.signature)
    assert {key.removeprefix("diffusion_model.").rpartition(".lora_")[0] for key in keys} <= modules


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("transformer", {"axes_dim_rope": [8, 8, 8]}, "do not fill a head of 48 channels"),
        ("transformer", {"_class_name": "Lumina2Transformer2DModel"}, "not OmniGen2Transformer2DModel"),
        ("mllm", {"model_type": "qwen3_vl"}, "needs Qwen2.5-VL 3B"),
        ("transformer", {"text_feat_dim": 64}, "gives 256 values a token"),
        ("vae", {"shift_factor": None}, "scaling_factor, shift_factor"),
        ("transformer", {"in_channels": 4}, "needs FLUX.1's"),
    ],
)
def test_wrong_files_are_named(folder, tmp_path, name, change, message):
    _link(folder, tmp_path / "wrong", name, change)
    with pytest.raises(FileError, match=message):
        CODE.check(Checkpoint.open(tmp_path / "wrong", "wrong", MODEL.files))


def test_too_few_positions_are_named(folder, tmp_path):
    _link(folder, tmp_path / "short", "transformer", {"axes_lens": [300, 512, 512]})
    with pytest.raises(FileError, match="300 positions on its first axis"):
        CODE.largest_side(Checkpoint.open(tmp_path / "short", "short", MODEL.files))


def test_a_text_encoder_without_tokenizer_is_refused(folder, tmp_path):
    _, encoder, _ = tiny.write_single_files(tmp_path, folder)
    bare = {name: value for name, value in load_file(encoder).items() if name != "tokenizer_json"}
    path = tmp_path / "bare.safetensors"
    save_file(bare, path)
    whole = Checkpoint.open(folder, "tiny", MODEL.files)
    sources = {source.component: source for source in whole.sources} | open_single_file(path, path.name, MODEL.files)
    with pytest.raises(FileError, match="has no tokenizer"):
        CODE.check(Checkpoint.assemble("tiny", sources, MODEL.files))


def _link(folder: Path, copy: Path, part: str, change: dict) -> None:
    """The folder again, with another configuration of one part."""
    for file in folder.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file == folder / part / "config.json":
                target.write_text(json.dumps(json.loads(file.read_text()) | change))
            else:
                target.symlink_to(file)
