"""Templates for pictures that another program drew: AI Toolkit's samples, its server's, sd-scripts'."""

from __future__ import annotations

from typing import Any

from ...pipelines.models.recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW
from .building import COPY_SAMPLE, EDIT, PICTURE, PROMPT, TRIGGERED, YOUR_JOB, Template
from .drawing import Drawing
from .model_files import RECOVERY_ADAPTER, TRAINING_ADAPTERS


def samples(model: str) -> Drawing:
    """The picture that AI Toolkit showed while it trained."""
    t = Template("AI Toolkit samples", model)
    t.column("1. Model, as the job holds it")
    pipeline = t.loader(weights="default", options=t.trained_with().out("options"))
    adapter = ""
    if t.facts.training_adapter:
        file = TRAINING_ADAPTERS[model]
        pipeline = t.add(
            "AITKTrainingAdapter", pipeline=pipeline.out("pipeline"), adapter_name=file.name, files=(file,)
        )
        adapter = (
            "\n\nAI Toolkit trains this model with an adapter merged into the weights, and takes it off again in its "
            "samples; *AITK Training Adapter* does the same. Its file is the job's `assistant_lora_path`. A job with "
            "`quantize: true` holds the adapted weights in torchao's `float8`: choose that for *transformer as*, with "
            "torchao installed."
        )
    own = t.lora(pipeline)
    inputs: dict[str, Any] = {"trigger_word": own.out("trigger_word"), "recipe": TRAINER_PREVIEW}
    if t.subject.edits:
        columns = ("3. The sample's control image", "4. The sample's settings")
        t.save(t.edited(own, columns, prompt=f"[trigger], {EDIT}", **inputs), "5. Picture")
    else:
        t.save(t.sampler(own, "3. The sample's settings", prompt=TRIGGERED, **inputs), "4. Picture")
    era = t.facts.recipes[TRAINER_PREVIEW].era
    eras = (
        f" It stands for AI Toolkit since {era.first}; the list below it has a recipe for each earlier time."
        if era
        else ""
    )
    control = (
        " *AITK Control Images* takes its `ctrl_img_1` to `ctrl_img_3`, in this order."
        if t.facts.recipes[TRAINER_PREVIEW].control_images > 1 and t.subject.edits
        else " *AITK Control Images* takes its `ctrl_img`."
        if t.subject.edits
        else ""
    )
    tiled = " It decodes in tiles, as jobs with `low_vram: true` do." if t.subject.tiled else ""
    t.note(
        f"**The samples that AI Toolkit drew while it trained your {t.facts.title} LoRA**\n\n"
        "1. Choose your file in *Apply AITK LoRA*: the one that was saved at the sample's step.\n"
        f"2. {COPY_SAMPLE}{control}\n"
        "3. Run. *render as* is `trainer preview`: the trainer's own schedule and arithmetic." + eras + "\n\n"
        f"*AITK Runtime Options* holds both parts as AI Toolkit's interface does.{tiled} Choose `none` where the job "
        "says `quantize: false` (transformer) or `quantize_te: false` (text encoder)." + adapter + "\n\n"
        "You have the job's folder? `AI Toolkit training job` reads all of this from it."
    )
    return t


def recovery_adapter() -> Drawing:
    t = Template("AI Toolkit samples, 3 bit with ARA", "qwen_image")
    t.column("1. Model, as the job holds it")
    options = t.add("AITKRuntimeOptions", text_encoder_quantization=t.subject.quantized[1], vae_tiling=t.subject.tiled)
    loaded = t.loader(weights="default", options=options.out("options"))
    held = t.add(
        "AITKRecoveryAdapter",
        pipeline=loaded.out("pipeline"),
        adapter_name=RECOVERY_ADAPTER.name,
        qtype="uint3",
        files=(RECOVERY_ADAPTER,),
    )
    own = t.lora(held)
    inputs: dict[str, Any] = {"trigger_word": own.out("trigger_word"), "recipe": TRAINER_PREVIEW}
    t.save(t.sampler(own, "3. The sample's settings", prompt=TRIGGERED, **inputs), "4. Picture")
    t.note(
        "**A LoRA that was trained with *3 bit with ARA***\n\nThe job's `qtype` has a bar in it: "
        "`uint3|ostris/accuracy_recovery_adapters/...`. What stands before the bar is *qtype*; the file behind it goes "
        f"into `models/loras`: [{RECOVERY_ADAPTER.name}]({RECOVERY_ADAPTER.url}). The layers that it names are held in "
        "3 bits, and it makes up for what that costs.\n\n"
        f"{COPY_SAMPLE}\n\n*transformer as* stays at `model default`. Each model of Qwen-Image has a file of its own."
    )
    return t


def replay_job() -> Drawing:
    t = Drawing("AI Toolkit training job - replay its samples")
    t.column("1. Job")
    job = t.add("AITKTrainingJob", job=YOUR_JOB)
    t.column("2. Which samples")
    replayed = t.add(
        "AITKReplayPreviews", job=job.out("job"), pipeline=job.out("pipeline"), checkpoints="last", samples="0"
    )
    t.add("PreviewImage", "The trainer's picture, ours, and where they differ", images=replayed.out("contact_sheet"))
    t.column("3. Our pictures")
    t.add("AITKSaveImage", images=replayed.out("ours"), report=replayed.out("report"))
    t.note(
        "**A training job's samples once more, beside the trainer's own**\n\n"
        "1. Copy AI Toolkit's folder of the job, `output/<name>`, into ComfyUI's `input` folder. Press R, and choose "
        "it as *job*.\n"
        "2. Run. Prompts, seeds, sizes, checkpoints and the model come from the folder. It renders the first sample "
        "with the last checkpoint.\n"
        "3. *checkpoints* and *samples* also take `all`, or numbers: `250,500`. A cancelled replay goes on where it "
        "stopped.\n\n"
        "Where the job names a path of the trainer's machine, choose your own copy of the model in *weights*."
    )
    return t


def compare_with_sample() -> Drawing:
    t = Template("Compare with a sample", "lumina2")
    t.column("1. Model, as the job holds it")
    pipeline = t.loader(weights="default", options=t.trained_with().out("options"))
    own = t.lora(pipeline)
    sampler = t.sampler(
        own,
        "3. The sample's settings",
        prompt=TRIGGERED,
        trigger_word=own.out("trigger_word"),
        recipe=TRAINER_PREVIEW,
    )
    t.column("4. The trainer's picture")
    theirs = t.add("LoadImage", "The trainer's sample", image=PICTURE)
    t.column("5. Result")
    t.add("AITKComparePreviews", ours=sampler.out("image"), trainer=theirs.out("image"))
    t.add("AITKSaveImage", images=sampler.out("image"), report=sampler.out("report"))
    t.note(
        "**Is it the trainer's picture? Numbers, a heat map and a verdict**\n\n"
        "1. Choose a picture of the job's `samples` folder as *The trainer's sample*, and the LoRA that was saved at "
        "its step.\n"
        f"2. {COPY_SAMPLE} Both pictures must have one size.\n"
        "3. Set *format* to the job's `sample.format`: for `jpg` ours is encoded as the trainer does before it is "
        "compared.\n\n"
        "The verdict stands on *AITK Compare Previews*. Any other model goes the same way."
    )
    return t


def compare_recipes() -> Drawing:
    t = Template("Compare two recipes", "lumina2")
    pipeline = t.load()
    batch = {"batch_size": 2, "steps": 25}
    page = t.sampler(pipeline, "2. As the model's page says", "Reference pipeline", **batch)
    trainer = t.sampler(pipeline, "3. As AI Toolkit draws", "Trainer preview", recipe=TRAINER_PREVIEW, **batch)
    t.column("4. Result")
    compared = t.add("AITKComparePreviews", ours=page.out("image"), trainer=trainer.out("image"))
    t.add("PreviewImage", "Contact sheet", images=compared.out("contact_sheet"))
    t.column("5. Picture")
    t.add("AITKSaveImage", images=page.out("image"), report=page.out("report"))
    t.note(
        "**Two batches of pictures, compared pair by pair**\n\n"
        "Both samplers have the same prompt, seed and steps, and another *render as*: so a LoRA looks different here "
        "than in its training samples. The contact sheet shows where.\n\n"
        "Compare what you like: two strengths, two files, two kinds of quantisation. Both batches need the same number "
        "of pictures, and one size."
    )
    return t


def lora_kohya() -> Drawing:
    t = Template("LoRA of sd-scripts", "lumina2")
    own = t.lora(t.load_comfy_files())
    t.column("3. Recipe")
    options = t.add("AITKRecipeOptions", cfg_trunc_ratio=0.25, renorm_cfg=1.0, discrete_flow_shift=6.0)
    sampler = t.sampler(
        own,
        "4. Prompt and settings",
        recipe="sd-scripts",
        steps=36,
        guidance_scale=3.5,
        system_prompt="You are an assistant designed to generate high-quality images based on user prompts.",
        recipe_options=options.out("recipe_options"),
    )
    t.save(sampler, "5. Picture")
    t.note(
        "**A LoRA that sd-scripts trained, as its `lumina_minimal_inference.py` renders it**\n\n"
        "| script | here |\n| --- | --- |\n"
        "| `--system_prompt` | *system_prompt*: that of the training; the script's own is empty |\n"
        "| `--guidance_scale`, `--steps` | the same names |\n"
        "| `--cfg_trunc_ratio`, `--renorm_cfg`, `--discrete_flow_shift` | *AITK Recipe Options* |\n"
        "| `--merge_lora_weights` | *application*: `merged` |\n\n"
        "The LoRA's Gemma2 half, where it has one, is applied as well. The script draws its noise on the compute "
        "device: a GPU gives another picture than a CPU."
    )
    return t


def server_request() -> Drawing:
    t = Template("Server request", "zimage")
    own = t.lora(t.load())
    sampler = t.sampler(own, "3. prompts[0]", prompt=PROMPT)
    t.save(sampler, "4. Picture")
    t.note(
        "**What ai-toolkit-inference's server renders of a request**\n\n"
        "| `POST /v1/inference` | here |\n| --- | --- |\n"
        "| `model` | *model*, with `:` for `_` |\n"
        "| `loras[0].path`, `network_multiplier` | *lora_name*, *strength* |\n"
        "| `prompt`, `neg` | *prompt*, *negative_prompt* |\n"
        "| `width`, `height`, `sample_steps`, `guidance_scale` | the same; these are the server's defaults |\n"
        "| `seed` | *seed*; none is 42 plus the prompt's place |\n"
        "| `trigger_word` | put it into the prompt |\n\n"
        f"*render as* is `{REFERENCE_PIPELINE}`, as the server does. From a terminal, "
        "`python3 tasks.py request REQUEST.json --workflow FILE` writes these nodes."
    )
    return t
