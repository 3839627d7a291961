"""Templates for pictures from texts, LoRAs and other pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...pipelines.models.recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW
from .building import PICTURE, PLACEHOLDER, TRIGGERED, YOUR_LORA, Template

if TYPE_CHECKING:
    from .drawing import Drawing


def text_to_image(model: str) -> Drawing:
    t = Template("Text to image", model)
    t.save(t.sampler(t.load(), "2. Prompt and settings", negative_prompt=t.subject.negative), "3. Picture")
    t.note(
        f"**{t.facts.title}, text to image**\n\nWrite a prompt, and run. {t.default_weights}\n\n{t.subject.about}\n\n"
        "*render as* on the sampler decides which program is reproduced. For the samples that AI Toolkit drew, open "
        "one of its own templates."
    )
    return t


def lora(model: str) -> Drawing:
    t = Template("LoRA", model)
    own = t.lora(t.load())
    trigger = {"prompt": TRIGGERED, "trigger_word": own.out("trigger_word")}
    t.save(t.sampler(own, "3. Prompt and settings", **trigger), "4. Picture")
    t.note(
        f"**Your LoRA on {t.facts.title}**\n\nChoose the file in *Apply AITK LoRA*. Its trigger word is read from it "
        "and replaces `[trigger]` in the prompt. *strength* re-weights it and loads no model again. Several LoRAs: "
        f"chain the node, or see `LoRA stack`.\n\n{t.subject.about}\n\nFor the picture of the training sample open "
        "`AI Toolkit samples`."
    )
    return t


def lora_stack() -> Drawing:
    t = Template("LoRA stack", "lumina2")
    loaded = t.load()
    t.column("2. LoRAs")
    stack = t.add("AITKLoRAStack", pipeline=loaded.out("pipeline"), lora_1=YOUR_LORA, lora_2=YOUR_LORA, strength_2=0.6)
    trigger = {"prompt": TRIGGERED, "trigger_word": stack.out("trigger_words")}
    t.save(t.sampler(stack, "3. Prompt and settings", **trigger), "4. Picture")
    t.note(
        "**Up to six LoRAs on one node, each with a strength and a switch**\n\nChoose your files. A slot that is off, "
        "or says *none*, costs nothing. Their trigger words replace `[trigger]` in the prompt.\n\nThe same as a "
        "chain of *Apply AITK LoRA*: they apply from the first slot to the last. Every model takes the node."
    )
    return t


def control_image(model: str) -> Drawing:
    t = Template("Control image", model)
    loaded = t.load()
    columns = ("2. Picture to edit", "3. Prompt and settings")
    t.save(t.edited(loaded, columns, recipe=TRAINER_PREVIEW), "4. Picture")
    key = "ctrl_img" if t.facts.recipes[TRAINER_PREVIEW].control_images == 1 else "ctrl_img_1"
    t.note(
        f"**{t.facts.title} edits a picture**\n\n{PLACEHOLDER} The prompt says what becomes of it.\n\n"
        f"{t.subject.control}\n\nIt is `{key}` of a sample in AI Toolkit's job. {t.default_weights}"
    )
    return t


def control_images(model: str) -> Drawing:
    t = Template("Control images", model)
    loaded = t.load()
    control = t.controlled(("Image 1: a person", "Image 2: a jacket", "Image 3: a room"), "2. Pictures")
    recipes = t.facts.recipes
    recipe = next(name for name in (REFERENCE_PIPELINE, TRAINER_PREVIEW) if recipes[name].control_images == 3)
    prompt = "the person from image 1 wears the jacket from image 2 in the room from image 3, photo"
    t.save(
        t.sampler(loaded, "3. Prompt and settings", prompt=prompt, control=control.out("control"), recipe=recipe),
        "4. Picture",
    )
    t.note(
        f"**{t.facts.title} combines up to three pictures**\n\n{PLACEHOLDER} Their order matters; they may differ in "
        "size. Leave out what you do not need. Each one makes every step slower.\n\n"
        f"In AI Toolkit's job they are `ctrl_img_1` to `ctrl_img_3`. {t.default_weights}"
    )
    return t


def image_to_image() -> Drawing:
    t = Template("Image to image", "lumina2")
    loaded = t.load()
    t.column("2. Picture to start from")
    picture = t.add("LoadImage", "Your picture", image=PICTURE)
    encoded = t.add("AITKEncodeImage", images=picture.out("image"), pipeline=loaded.out("pipeline"))
    sampler = t.sampler(loaded, "3. Prompt and settings", latent=encoded.out("latent"), denoise=0.6)
    t.save(sampler, "4. Picture")
    t.column("5. The same, from the latent")
    decoded = t.add("AITKDecodeLatent", latent=sampler.out("latent"), pipeline=loaded.out("pipeline"))
    t.add("PreviewImage", images=decoded.out("image"))
    t.note(
        f"**A picture as the start**\n\n{PLACEHOLDER} *AITK Encode Image* makes a latent of it, at a size that the "
        "recipe renders. *denoise* on the sampler (open its advanced inputs) says how much of it goes: 0.3 keeps most, "
        "1 none.\n\n*AITK Decode Latent* makes the picture of the sampler's latent once more: put what works on "
        "latents between the two. Every model takes these nodes."
    )
    return t
