"""What the scripts that run AI Toolkit's own code have in common: set-up, network, preview round and records.

The scripts run in AI Toolkit's interpreter with its checkout on the path, for example

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_z_image_worker.py JOB.json OUT.safetensors

(without the two files they do the jobs of whose files they read from stdin, see ``each_job``),
hence they import nothing of this project but this file, which lies beside them. Loading, network, encoding, sampling
and saving are AI Toolkit's; a script only calls them in the order of its training process, and watches.

JOB.json, in every script:
    checkpoint            where the model lies
    dtype                 "float32" or "bf16"
    quantize_transformer  null or a qtype, such as "qfloat8" or "qint8"
    quantize_te           null or a qtype
    recovery_adapter      optional: the file of an accuracy recovery adapter, whose layers alone quantize_transformer is
                          for; one in LyCORIS' names is attached as before January 2026, since when AI Toolkit stops
    lora                  null or a file that AI Toolkit saved: LoRA, DoRA, LoKr or full rank
    device                optional, "cpu" by default
    items                 the preview round: prompt, negative_prompt, width, height, seed, steps, guidance,
                          network_multiplier, and optionally control, up to three picture files, and control_keys, the
                          sample's keys of them; AI Toolkit merges the LoRA where all multipliers are equal and the
                          transformer is not quantised, else it runs live

OUT.safetensors, for item i: `item{i}.` + what the script records, and image_uint8. The metadata holds package versions,
`application` (none, live or merged) and how many linear layers are quantised.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import torch

Job = dict[str, Any]
Stages = dict[str, "torch.Tensor"]
# the object that holds a function, the function's name there, and what is called in its stead
Watch = tuple[Any, str, Callable[..., Any]]

PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "torchao", "peft", "numpy", "pillow")
_SUFFIXES = (
    ".lora_A.weight", ".lora_B.weight", ".magnitude", ".lokr_w1", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".alpha",
)  # fmt: skip
END_OF_JOB = "@@ end of job"
_OLD_LOKR = "lycoris_"
CONTROL_KEYS = ("ctrl_img", "ctrl_img_2", "ctrl_img_3")


def prepare() -> None:
    """Makes look-ups fail and, without a GPU, hides triton: with it AI Toolkit picks kernels that need one."""
    # the checkpoint is local
    os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="YES", NO_ALBUMENTATIONS_UPDATE="1")
    import torch

    if not torch.cuda.is_available():
        # an import of a name that maps to None is an ImportError
        sys.modules["triton"] = None  # type: ignore[assignment]


def import_model(name: str) -> types.ModuleType:
    """AI Toolkit's package of one model, e.g. ``z_image``, without the one around it, which imports every other."""
    spec = importlib.util.find_spec("extensions_built_in")
    assert spec is not None and spec.submodule_search_locations
    around = types.ModuleType("extensions_built_in.diffusion_models")
    around.__path__ = [str(Path(spec.submodule_search_locations[0], "diffusion_models"))]
    sys.modules[around.__name__] = around
    return importlib.import_module(f"{around.__name__}.{name}")


def model_config(job: Job, arch: str, **more: Any) -> Any:
    """The job's model section; ``more`` adds keys to it."""
    from toolkit.config_modules import ModelConfig

    transformer, text_encoder = job.get("quantize_transformer"), job.get("quantize_te")
    section = {
        "name_or_path": job["checkpoint"],
        "arch": arch,
        "dtype": job["dtype"],
        "quantize": bool(transformer),
        "quantize_te": bool(text_encoder),
        # some models read this for the text encoder too
        "qtype": "|".join([transformer or text_encoder or "qfloat8", *filter(None, [job.get("recovery_adapter")])]),
        "qtype_te": text_encoder or "qfloat8",
    }
    return ModelConfig(**section, **more)


def check_one_qtype(job: Job) -> None:
    """For models both of whose parts AI Toolkit quantises with one type: raises ValueError where a job names two."""
    qtypes = {job[part] for part in ("quantize_transformer", "quantize_te") if job.get(part)}
    if len(qtypes) > 1:
        raise ValueError(f"AI Toolkit quantises both parts of this model with one type, not with {sorted(qtypes)}.")


def settle(sd: Any, job: Job) -> None:
    """Puts a loaded model into the state in which the training process takes previews."""
    from toolkit.train_tools import get_torch_dtype

    dtype = get_torch_dtype(job["dtype"])
    sd.unet.to(sd.device_torch, dtype=dtype)
    sd.vae.to("cpu", dtype=dtype)
    for part in (sd.unet, sd.vae, text_encoder_of(sd)):
        part.requires_grad_(False)
        part.eval()
    for wanted, part in (("quantize_transformer", sd.unet), ("quantize_te", text_encoder_of(sd))):
        # a layer that fails to quantise is only printed, and uint8 fails at all
        if job.get(wanted) and job[wanted] != "uint8" and quantized_layers(part)[0] == 0:
            raise RuntimeError(f"{wanted}: AI Toolkit left the part unquantised; its output above says why.")


def text_encoder_of(sd: Any) -> torch.nn.Module:
    """The text encoder; most models hold a list of one."""
    return sd.text_encoder[0] if isinstance(sd.text_encoder, list) else sd.text_encoder


def quantized_layers(model: torch.nn.Module) -> tuple[int, int]:
    """How many linear layers hold quantised weights, and how many there are."""
    import torch

    def plain(layer: torch.nn.Linear) -> bool:
        return type(layer) is torch.nn.Linear and type(layer.weight.data) is torch.Tensor

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return sum(not plain(layer) for layer in layers), len(layers)


def network_section(tensors: Stages) -> dict[str, Any]:
    """The job's network section that saves such a file, e.g. ``{"type": "lora", "linear": 16, "linear_alpha": 16}``."""
    names = {key.rpartition(".")[2] if "lora_" not in key else key.split(".")[-2] for key in tensors}
    if "lokr_w1" in names:
        return _lokr_section(tensors)
    if "lora_B" not in names:
        return {"type": "fullrank"}
    ranks = {len(tensor) for key, tensor in tensors.items() if key.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(f"One rank expected, found {sorted(ranks)}.")
    rank = ranks.pop()
    return {"type": "dora" if "magnitude" in names else "lora", "linear": rank, "linear_alpha": rank}


def _lokr_section(tensors: Stages) -> dict[str, Any]:
    from toolkit.models.lokr import factorization

    section: dict[str, Any] = {"type": "lokr", "old_lokr_format": any(key.startswith(_OLD_LOKR) for key in tensors)}
    pairs: list[tuple[int, int]] = []  # how the sides of the layers were split
    for key, first in tensors.items():
        if not key.endswith(".lokr_w1"):
            continue
        stem = key.removesuffix("1")
        if f"{stem}2" in tensors:
            second = tuple(tensors[f"{stem}2"].shape)
        else:
            a, b = tensors[f"{stem}2_a"], tensors[f"{stem}2_b"]
            second = (len(a), b.shape[1])
            alpha = tensors[key.removesuffix(".lokr_w1") + ".alpha"]
            section |= {"lokr_full_rank": False, "linear": len(b), "linear_alpha": float(alpha)}
        pairs += zip(first.shape, second, strict=True)
    # -1 is AI Toolkit's default: as near to the root as the side allows
    for factor in (-1, *sorted({small for small, _ in pairs})):
        if all(factorization(small * large, factor) == (small, large) for small, large in pairs):
            return section | {"lokr_factor": factor}
    raise ValueError("No lokr_factor gives the shapes of this LoKr.")


def add_network(sd: Any, path: str) -> None:
    """Attaches the file as a network that trains just the layers that it names, as a resumed job does."""
    import torch
    from safetensors.torch import load_file
    from toolkit.config_modules import NetworkConfig
    from toolkit.lora_special import LoRASpecialNetwork

    tensors = load_file(path)
    # the file's keys with AI Toolkit's names for the modules; LoKr's old format goes by another prefix
    keys = [key.replace(_OLD_LOKR, "lora_transformer_") for key in sd.convert_lora_weights_before_load(tensors)]
    layers = {key.removesuffix(suffix) for key in keys for suffix in _SUFFIXES if key.endswith(suffix)}
    # only_if_contains chooses the layers, those outside of the blocks too
    config = NetworkConfig(**network_section(tensors), transformer_only=False)
    chosen: dict[str, Any] = {"only_if_contains": sorted(layers)}
    if hasattr(sd, "target_lora_modules"):
        chosen["target_lin_modules"] = sd.target_lora_modules
    network = LoRASpecialNetwork(
        text_encoder=sd.text_encoder,
        unet=sd.get_model_to_train(),
        lora_dim=config.linear,
        multiplier=1.0,
        alpha=config.linear_alpha,
        train_unet=True,
        train_text_encoder=False,
        conv_lora_dim=config.conv,
        conv_alpha=config.conv_alpha,
        is_lumina2=sd.model_config.is_lumina2,
        dropout=config.dropout,
        network_config=config,
        network_type=config.type,
        transformer_only=config.transformer_only,
        is_transformer=sd.is_transformer,
        base_model=sd,
        **chosen,
    )
    network.force_to(sd.device_torch, dtype=torch.float32)
    sd.network = network
    network._update_torch_multiplier()
    network.apply_to(sd.text_encoder, sd.unet, False, True)
    if sd.model_config.quantize:
        network.can_merge_in = False
    network.prepare_grad_etc(sd.text_encoder, sd.unet)

    unused = network.load_weights(path) or {}
    # a DoRA's magnitudes are saved and not loaded: a resumed job starts with new ones, the one that saved has these
    state = network.state_dict()
    for key in [key for key in unused if key.endswith("$$magnitude")]:
        state[key.replace("$$magnitude", ".magnitude")].copy_(unused.pop(key))
    network.multiplier = 1.0
    built = {module.lora_name.replace("$$", ".") for module in network.get_all_modules()}
    if unused or built != layers:
        raise ValueError(f"{path} does not fit: unused {sorted(unused)}, layers {sorted(built ^ layers)}.")


@contextmanager
def lycoris_recovered(job: Job) -> Iterator[None]:
    """Lets a model be loaded on a recovery adapter in LyCORIS' names.

    Until January 2026 (5b5aadad) a LoKr had these names in every network; since then the adapter's network would have
    to ask for them, and does not.
    """
    from safetensors import safe_open
    from toolkit.config_modules import NetworkConfig

    def init(self: Any, **section: Any) -> None:
        real(self, **section, old_lokr_format=True)

    real, path = NetworkConfig.__init__, job.get("recovery_adapter")
    with ExitStack() as stack:
        if path:
            with safe_open(path, "pt") as file:
                if all(key.startswith(_OLD_LOKR) for key in file.keys()):  # noqa: SIM118 (no mapping)
                    stack.enter_context(patch.object(NetworkConfig, "__init__", init))
        yield


class Recorder:
    """Copies what passes by during a preview round; every call goes on unchanged.

    Attributes:
        items: what was kept of each picture, by name.
        applications: how the network took part: none, live, merged.
    """

    def __init__(self, sd: Any) -> None:
        self.sd = sd
        self.items: list[Stages] = []
        self.applications: set[str] = set()

    def start(self) -> None:
        """The next picture begins."""
        self.items.append({})
        network = self.sd.network
        self.applications.add("none" if network is None else "merged" if network.is_merged_in else "live")

    def keep(self, name: str, value: torch.Tensor, *, first: bool = False) -> None:
        """Copies a tensor of this picture; of the calls with ``first`` only the first one counts."""
        if not (first and name in self.items[-1]):
            self.items[-1][name] = value.detach().to("cpu", copy=True).contiguous()

    def watches(self) -> list[Watch]:
        """The functions to watch."""
        raise NotImplementedError

    @contextmanager
    def watching(self) -> Iterator[None]:
        def watched(real: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
            return functools.wraps(real)(lambda *args, **kwargs: wrapper(real, *args, **kwargs))

        with ExitStack() as stack:
            for owner, name, wrapper in self.watches():
                stack.enter_context(patch.object(owner, name, watched(getattr(owner, name), wrapper)))
            yield


class PipelineRecorder(Recorder):
    """Records a pipeline in diffusers' manner: __call__ with embeddings, a scheduler's step, the VAE's decode.

    Keeps initial_noise, pred_cond_step0 (what the transformer gives for the prompt), pred_step0 (what the scheduler
    gets), final_latents and vae_decode_input; a subclass adds the texts.
    """

    def __init__(self, sd: Any, pipeline: type, scheduler: type) -> None:
        super().__init__(sd)
        self.pipeline, self.scheduler = pipeline, scheduler

    def watches(self) -> list[Watch]:
        return [
            (self.pipeline, "__call__", self.on_pipeline),
            (self.scheduler, "step", self.on_step),
            (self.sd.vae, "decode", self.on_decode),
        ]

    @contextmanager
    def watching(self) -> Iterator[None]:
        hook = self.sd.unet.register_forward_hook(self.on_prediction)
        try:
            with super().watching():
                yield
        finally:
            hook.remove()

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        """Keeps embeddings and masks of the pipeline's arguments."""
        raise NotImplementedError

    def keep_prediction(self, output: Any) -> None:
        """Keeps what one call of the transformer gave; the prompt's call comes before the negative one."""
        self.keep("pred_cond_step0", output, first=True)

    def on_pipeline(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.start()
        self.keep_texts(kwargs)
        return real(*args, **kwargs)

    def on_prediction(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.keep_prediction(output)

    def on_step(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _scheduler, prediction, _timestep, latents = args
        self.keep("initial_noise", latents, first=True)
        self.keep("pred_step0", prediction, first=True)
        result = real(*args, **kwargs)
        self.keep("final_latents", result[0])
        return result

    def on_decode(self, real: Callable[..., Any], latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.keep("vae_decode_input", latents)
        return real(latents, *args, **kwargs)


def render(recorder: Recorder, items: Sequence[Job], **options: Any) -> None:
    """One preview round, with the pictures read back from the files that AI Toolkit saves."""
    import numpy as np
    import torch
    from PIL import Image
    from toolkit.config_modules import GenerateImageConfig

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"item{i}.png") for i in range(len(items))]
        configs = [
            GenerateImageConfig(
                prompt=item["prompt"],
                negative_prompt=item["negative_prompt"],
                width=item["width"],
                height=item["height"],
                seed=item["seed"],
                num_inference_steps=item["steps"],
                guidance_scale=item["guidance"],
                network_multiplier=item["network_multiplier"],
                output_path=str(path),
                output_ext="png",
                do_cfg_norm=item.get("do_cfg_norm", False),
                **dict(zip(item.get("control_keys", CONTROL_KEYS), item.get("control", ()), strict=False)),
            )
            for item, path in zip(items, paths, strict=True)
        ]
        with recorder.watching():
            recorder.sd.generate_images(configs, **options)
        for stages, path in zip(recorder.items, paths, strict=True):
            with Image.open(path) as image:
                stages["image_uint8"] = torch.from_numpy(np.array(image))


def save(recorder: Recorder, path: str) -> None:
    from safetensors.torch import save_file
    from version import VERSION

    tensors = {f"item{i}.{name}": value for i, stages in enumerate(recorder.items) for name, value in stages.items()}
    metadata = {"ai-toolkit": VERSION, "application": ", ".join(sorted(recorder.applications))}
    for name in PACKAGES:
        try:
            metadata[name] = version(name)
        except PackageNotFoundError:
            metadata[name] = "none"
    for name, part in (("transformer", recorder.sd.unet), ("text_encoder", text_encoder_of(recorder.sd))):
        metadata[f"quantized_{name}"] = "{} of {}".format(*quantized_layers(part))
    save_file(tensors, path, metadata=metadata)


def main(load: Callable[[Job], Any], recorder: Callable[[Any], Recorder], **options: Any) -> None:
    """Does the job of the command line, or those that come in, one after another.

    Args:
        load: makes AI Toolkit's model of a job, whose ``scratch`` is an empty folder.
        recorder: made of that model.
        options: of AI Toolkit's generate_images.
    """
    prepare()

    def work(job_path: str, out_path: str) -> None:
        job: Job = json.loads(Path(job_path).read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as scratch:
            with lycoris_recovered(job):
                sd = load(job | {"scratch": scratch})
            settle(sd, job)
            if job.get("lora"):
                add_network(sd, job["lora"])
            watcher = recorder(sd)
            render(watcher, job["items"], **options)
            save(watcher, out_path)

    each_job(work)


def each_job(work: Callable[[str, str], None]) -> None:
    """Calls ``work`` with the two paths of the command line; without them, with those of each line that comes in.

    Such a line is a JSON list of both paths. What fails is printed, and the next job goes on.
    """
    if len(sys.argv) == 3:
        work(*sys.argv[1:])
        return
    if len(sys.argv) != 1:
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} [JOB.json OUT.safetensors]")
    for line in sys.stdin:
        try:
            work(*json.loads(line))
        except Exception:
            traceback.print_exc()
        # what stands before it may be a progress bar, which ends no line
        sys.stderr.flush()
        print(f"\n{END_OF_JOB}", flush=True)
