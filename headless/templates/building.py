"""What most templates have in common: the loader, a LoRA, the sampler, the saved picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...pipelines.models import find_model
from ...pipelines.models.recipe import TRAINER_PREVIEW
from .drawing import Drawing, ModelFile, Node
from .model_files import COMFY_FILES, SUBJECTS, Subject

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts

# no file's name, or the editor would list it as missing before the user has chosen anything
YOUR_LORA, YOUR_JOB = "choose your LoRA", "choose your job"
YOUR_GGUF, YOUR_PTH = "choose your GGUF file", "choose your pth file"
PICTURE = "example.png"  # comes with ComfyUI
PLACEHOLDER = f"`{PICTURE}` comes with ComfyUI: put your own in its place."
PROMPT = "a red fox in the snow, morning light, photo"
EDIT = "the same scene in deep winter, snow on the ground, morning light, photo"
TRIGGERED = f"[trigger], {PROMPT}"
COPY_SAMPLE = (
    "Copy prompt, size, steps, guidance and seed from the job's `sample:` section. Sample number i, counted from 0, "
    "uses seed + i while `walk_seed` is on."
)


class Template(Drawing):
    """A drawing of one model's.

    Attributes:
        facts: the model's.
        subject: what its templates say.
    """

    def __init__(self, feature: str, model: str) -> None:
        self.facts: ModelFacts = find_model(model)
        self.subject: Subject = SUBJECTS[model]
        super().__init__(f"{feature} - {self.facts.title}")

    @property
    def default_weights(self) -> str:
        """What ``default`` loads, as a sentence."""
        return f"`weights` = `default` is {self.subject.weights.format(self.facts.files.repository)}"

    def load(self, column: str = "1. Model", **inputs: Any) -> Node:
        """The loader, in a column of its own, with the model's repository unless ``inputs`` say otherwise."""
        self.column(column)
        return self.loader(weights="default", **inputs)

    def load_files(self, main: ModelFile | str, *others: ModelFile) -> Node:
        """The loader with files: the transformer or all in one, then text encoder and VAE."""
        self.column("1. Model")
        names = dict(zip(("text_encoder", "vae"), (one.name for one in others), strict=False))
        files = (*([main] if isinstance(main, ModelFile) else []), *others)
        return self.loader(weights=main if isinstance(main, str) else main.name, files=files, **names)

    def load_comfy_files(self) -> Node:
        """The loader with the files that ComfyUI's users have."""
        return self.load_files(*COMFY_FILES[self.facts.id])

    def loader(self, files: tuple[ModelFile, ...] = (), **inputs: Any) -> Node:
        """The loader in the column that was begun."""
        return self.add("LoadAITKModel", model=self.facts.id, files=files, **inputs)

    def lora(self, pipeline: Node, title: str = "") -> Node:
        """A LoRA of the user's, in a column of its own."""
        self.column("2. LoRA")
        return self.add("ApplyAITKLoRA", title, pipeline=pipeline.out("pipeline"), lora_name=YOUR_LORA)

    def trained_with(self) -> Node:
        """How AI Toolkit's interface holds the model while it trains."""
        transformer, text_encoder = self.subject.quantized
        tiled: dict[str, Any] = {"vae_tiling": True} if self.subject.tiled else {}
        return self.add(
            "AITKRuntimeOptions", transformer_quantization=transformer, text_encoder_quantization=text_encoder, **tiled
        )

    def sampler(self, pipeline: Node, column: str, title: str = "", **inputs: Any) -> Node:
        """The sampler, with the values of the recipe; ``column`` empty: in the one that was begun."""
        if column:
            self.column(column)
        recipe = inputs.pop("recipe", self.subject.recipe)
        steps, guidance = self.facts.defaults.steps, self.facts.defaults.guidance_scale
        if recipe == TRAINER_PREVIEW:
            steps, guidance = self.subject.job
        values = {"prompt": PROMPT, "steps": steps, "guidance_scale": guidance, "recipe": recipe} | inputs
        return self.add("AITKSampler", title, pipeline=pipeline.out("pipeline"), **values)

    def edited(self, pipeline: Node, columns: tuple[str, str], **inputs: Any) -> Node:
        """The sampler with a picture that the user replaces; the columns are the picture's and the sampler's."""
        control = self.controlled(("Your picture",), columns[0])
        wired = {"prompt": EDIT, "control": control.out("control"), **inputs}
        return self.sampler(pipeline, columns[1], **wired)

    def save(self, sampler: Node, column: str) -> Node:
        """The saved picture, in a column of its own."""
        self.column(column)
        return self.add("AITKSaveImage", images=sampler.out("image"), report=sampler.out("report"))

    def controlled(self, titles: tuple[str, ...], column: str) -> Node:
        """Reference images, each of which the user replaces."""
        self.column(column)
        loaded = [self.add("LoadImage", title, image=PICTURE) for title in titles]
        images: dict[str, Any] = {f"image_{number}": node.out("image") for number, node in enumerate(loaded, 1)}
        return self.add("AITKControlImages", **images)
