"""Templates for options, and for weights from files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .building import PLACEHOLDER, YOUR_GGUF, YOUR_PTH, Template
from .model_files import COMFY_FILES, FLUX_VAE, GEMMA2, LUMINA_ALL_IN_ONE

if TYPE_CHECKING:
    from .drawing import Drawing


def small_gpu() -> Drawing:
    t = Template("Options, small GPU", "flux2")
    t.column("1. Model, held small")
    options = t.add(
        "AITKRuntimeOptions", transformer_quantization="qfloat8", text_encoder_quantization="qfloat8",
        placement="sequential",
    )  # fmt: skip
    loaded = t.loader(weights="default", options=options.out("options"))
    t.save(t.sampler(loaded, "2. Prompt and settings"), "3. Picture")
    t.note(
        "**A large model on a small GPU**\n\n*transformer as* and *text encoder as* `qfloat8` halve the memory and "
        "change the picture, as in AI Toolkit's jobs that say `quantize: true`. `uint4` is smaller still.\n\n"
        "*placement* `sequential` keeps nothing on the GPU: blocks come for their turn alone. It is the slowest, and "
        "changes no pixel; `automatic`, the default, keeps what fits.\n\n"
        f"Every model takes the node. {t.default_weights}"
    )
    return t


def recipe_options() -> Drawing:
    t = Template("Options of a recipe", "omnigen2")
    loaded = t.load()
    control = t.controlled(("Your picture",), "2. Picture to follow")
    t.column("3. Recipe")
    options = t.add("AITKRecipeOptions", image_guidance_scale=2.0)
    inputs: dict[str, Any] = {"control": control.out("control"), "recipe_options": options.out("recipe_options")}
    prompt = "the same scene in deep winter, snow on the ground"
    t.save(t.sampler(loaded, "4. Prompt and settings", prompt=prompt, **inputs), "5. Picture")
    t.note(
        f"**Settings that only some recipes read**\n\n{PLACEHOLDER} *image_guidance_scale* above 1 follows it more "
        "closely, with a third model call in each step; AI Toolkit's samples have 1.\n\nThe node's other settings are "
        "those of sd-scripts: one that was changed and that the recipe does not read is an error. See `LoRA of "
        "sd-scripts`."
    )
    return t


def comfy_files(model: str) -> Drawing:
    t = Template("ComfyUI files", model)
    loaded = t.load_comfy_files()
    if t.subject.edits:
        t.save(t.edited(loaded, ("2. Picture to edit", "3. Prompt and settings")), "4. Picture")
    else:
        t.save(t.sampler(loaded, "2. Prompt and settings"), "3. Picture")
    rows = "".join(f"- [{one.name}]({one.url}) into `models/{one.directory}`\n" for one in COMFY_FILES[model])
    tokenizer = (
        "The tokenizer is inside the text encoder's file: nothing else is downloaded."
        if t.subject.tokenizer
        else "The text encoder's file holds no tokenizer: it comes from the model's repository, a few MB, once."
    )
    other = f"\n\n{t.subject.rounded}" if t.subject.rounded else ""
    t.note(
        f"**{t.facts.title} from the three files that ComfyUI's users have**\n\n"
        f"{rows}\nThe editor's list of missing models offers them, too. {tokenizer}{other}"
    )
    return t


def gguf(model: str) -> Drawing:
    t = Template("GGUF file", model)
    files = COMFY_FILES[model]
    t.save(t.sampler(t.load_files(YOUR_GGUF, *files[1:]), "2. Prompt and settings"), "3. Picture")
    t.note(
        f"**{t.facts.title} from a quantised transformer (GGUF)**\n\nPut the file into `models/diffusion_models` or "
        "`models/unet`, press R, and choose it in *weights*. It holds the transformer alone, so *text_encoder* and "
        f"*vae* need a file each: `{files[1].name}`, `{files[2].name}`.\n\n"
        "The weights stay in their blocks and are unpacked layer by layer. LoRAs on them always run live."
    )
    return t


def all_in_one() -> Drawing:
    t = Template("All-in-one file", "lumina2")
    t.save(t.sampler(t.load_files(LUMINA_ALL_IN_ONE), "2. Prompt and settings"), "3. Picture")
    t.note(
        f"**One file with everything in it**\n\nPut [{LUMINA_ALL_IN_ONE.name}]({LUMINA_ALL_IN_ONE.url}) into "
        "`models/checkpoints` and choose it in *weights*. *text_encoder* and *vae* stay `default`: the file holds "
        "both, and the tokenizer. Another file there replaces that part of it."
    )
    return t


def pickle() -> Drawing:
    t = Template("pth file", "lumina2")
    t.save(t.sampler(t.load_files(YOUR_PTH, GEMMA2, FLUX_VAE), "2. Prompt and settings"), "3. Picture")
    t.note(
        "**The original release's `.pth`**\n\n`consolidated.00-of-01.pth` goes into `models/diffusion_models`. It "
        "holds the transformer alone, so *text_encoder* and *vae* need a file each.\n\nA pickle can carry code: only "
        "plain tensors are read from it, and anything else in the file is refused before it runs."
    )
    return t
