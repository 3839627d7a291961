"""Renders Lumina2 pictures with sd-scripts' own script and records the stages, as the reference of side-by-side tests.

    PYTHONPATH=CHECKOUT <sd-scripts' python> sd_scripts_worker.py CHECKOUT JOBS.json

The worker runs in an interpreter with the packages that sd-scripts pins, hence it imports nothing of this project. What
runs is ``lumina_minimal_inference.py`` of the checkout, as ``__main__`` and with its own arguments; here it is only
watched.

JOBS.json holds one job or a list of them:
    dit, gemma2, ae   single files in sd-scripts' layout; three times the same for an all-in-one file
    sizes             optional: ``dit``, ``gemma2`` and ``ae``, each with what tiny files differ in from the real ones
    arguments         the script's by name, without dashes: true is a flag, a list several values, null or false nothing
    output            the safetensors file to write

The output holds initial_noise, sigmas, timesteps, model_timestep_step0, pred_cond_step0, pred_uncond_step0, pred_step0
(what the scheduler gets), latents_by_step, final_latents, vae_decode_input, image_float, image_uint8, and embeds, ids
and mask of prompt_ and negative_. The metadata holds package versions and ``guided_steps``.

Stood in for, because files do not tell or the script would download: the sizes, and the tokenizer "google/gemma-2-2b",
which is made from the sentencepiece model inside the Gemma2 file. Where torchvision is missing, an empty module takes
its place: sd-scripts names its picture transforms when imported and calls none of them to render.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, patch

if TYPE_CHECKING:
    import torch

Job = dict[str, Any]

SCRIPT = "lumina_minimal_inference.py"
PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "pillow")
SPIECE_KEYS = ("spiece_model", "text_encoders.spiece_model")
TOKENIZER_CONFIG = {
    "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
    "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip


def prepare_imports() -> None:
    """Makes the checkout importable without torchvision."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # the latter where its binary is for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        module = ModuleType("torchvision")
        module.__spec__ = ModuleSpec("torchvision", None)
        module.transforms = MagicMock()
        sys.modules["torchvision"] = module


def write_tokenizer(gemma2: str, folder: Path) -> None:
    """Makes a tokenizer folder from the sentencepiece model inside the Gemma2 file."""
    from safetensors import safe_open

    with safe_open(gemma2, framework="pt") as file:
        present = set(file.keys())
        key = next((key for key in SPIECE_KEYS if key in present), None)
        if key is None:
            raise ValueError(f"{gemma2} holds no sentencepiece model: {' or '.join(SPIECE_KEYS)}.")
        (folder / "tokenizer.model").write_bytes(file.get_tensor(key).numpy().tobytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))


@contextmanager
def stand_ins(job: Job, tokenizer: Path) -> Iterator[None]:
    """The sizes of the job's files, and a tokenizer that is there without a network."""
    from library import flux_models, lumina_models, lumina_util, strategy_lumina
    from transformers import AutoTokenizer

    sizes = job.get("sizes") or {}
    build, config = lumina_models.NextDiT_2B_GQA_patch2_Adaln_Refiner, lumina_util.Gemma2Config
    autoencoder = flux_models.configs["schnell"]
    replaced: list[tuple[Any, str, Any]] = [
        (strategy_lumina, "AutoTokenizer", SimpleNamespace(
            from_pretrained=lambda name, **_: AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
        )),
        (lumina_util, "Gemma2Config", lambda **values: config(**values | sizes.get("gemma2", {}))),
        (autoencoder, "ae_params", dataclasses.replace(autoencoder.ae_params, **sizes.get("ae", {}))),
    ]  # fmt: skip
    if "dit" in sizes:
        params = lumina_models.LuminaParams(**sizes["dit"])
        replaced.append(
            (lumina_models, "NextDiT_2B_GQA_patch2_Adaln_Refiner", lambda **options: build(params, **options))
        )
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield


class Recorder:
    """Copies what passes by during a run of the script; every call goes on unchanged."""

    def __init__(self) -> None:
        self.stages: dict[str, torch.Tensor] = {}
        self.latents: list[torch.Tensor] = []
        self.predictions: list[int] = []  # model calls of each step

    def keep(self, name: str, value: torch.Tensor, *, first: bool = False) -> None:
        if not (first and name in self.stages):
            self.stages[name] = value.detach().to("cpu", copy=True).contiguous()

    @contextmanager
    def watching(self) -> Iterator[None]:
        from library import lumina_train_util
        from library.flux_models import AutoEncoder
        from library.sd3_train_utils import FlowMatchEulerDiscreteScheduler
        from library.strategy_lumina import LuminaTextEncodingStrategy

        def watched(real: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
            return functools.wraps(real)(lambda *args, **kwargs: wrapper(real, *args, **kwargs))

        with ExitStack() as stack:
            for owner, name, wrapper in (
                (LuminaTextEncodingStrategy, "encode_tokens", self.on_text),
                (lumina_train_util, "denoise", self.on_denoise),
                (FlowMatchEulerDiscreteScheduler, "step", self.on_step),
                (AutoEncoder, "decode", self.on_decode),
            ):
                stack.enter_context(patch.object(owner, name, watched(getattr(owner, name), wrapper)))
            yield

    def on_text(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        side = "negative" if "prompt_embeds" in self.stages else "prompt"
        for name, value in zip(("embeds", "ids", "mask"), result, strict=True):
            self.keep(f"{side}_{name}", value)
        return result

    def on_denoise(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scheduler, model, noise = args[:3]
        self.keep("initial_noise", noise)
        self.keep("sigmas", scheduler.sigmas)
        self.keep("timesteps", scheduler.timesteps)
        self.predictions.append(0)
        with model.register_forward_hook(self.on_prediction):
            result = real(*args, **kwargs)
        self.keep("final_latents", result)
        return result

    def on_prediction(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.predictions[-1] += 1
        if len(self.predictions) == 1:
            self.keep("model_timestep_step0", args[1])
            self.keep("pred_cond_step0" if self.predictions[0] == 1 else "pred_uncond_step0", output)

    def on_step(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.keep("pred_step0", args[1], first=True)
        result = real(*args, **kwargs)
        self.latents.append(result[0].detach().to("cpu", copy=True))
        self.predictions.append(0)
        return result

    def on_decode(self, real: Callable[..., Any], model: Any, latents: torch.Tensor) -> Any:
        self.keep("vae_decode_input", latents)
        image = real(model, latents)
        self.keep("image_float", image)
        return image


def command_line(job: Job, pictures: str) -> list[str]:
    """The script's arguments."""
    files = {"pretrained_model_name_or_path": "dit", "gemma2_path": "gemma2", "ae_path": "ae"}
    values = {name: job[part] for name, part in files.items()} | {"output_dir": pictures} | job["arguments"]
    words: list[str] = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            words.append(f"--{name}={value}")  # one word, since a prompt may begin with a dash
    return words


def render(checkout: Path, job: Job) -> None:
    """Runs one job and writes its output."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, pictures = Path(folder, "tokenizer"), Path(folder, "pictures")
        tokenizer.mkdir()
        write_tokenizer(job["gemma2"], tokenizer)
        arguments = [SCRIPT, *command_line(job, str(pictures))]
        with stand_ins(job, tokenizer), recorder.watching(), patch.object(sys, "argv", arguments):
            runpy.run_path(str(checkout / SCRIPT), run_name="__main__")
        (picture,) = pictures.iterdir()
        with Image.open(picture) as image:
            recorder.stages["image_uint8"] = torch.from_numpy(np.array(image))
    stages = recorder.stages | {"latents_by_step": torch.stack(recorder.latents)}
    guided = sum(calls == 2 for calls in recorder.predictions)
    metadata = {name: version(name) for name in PACKAGES} | {"guided_steps": str(guided)}
    save_file(stages, job["output"], metadata=metadata)


def main(checkout: str, jobs_path: str) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="YES")
    jobs = json.loads(Path(jobs_path).read_text(encoding="utf-8"))
    prepare_imports()
    for job in jobs if isinstance(jobs, list) else [jobs]:
        render(Path(checkout), job)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: sd_scripts_worker.py CHECKOUT JOBS.json")
    main(*sys.argv[1:])
