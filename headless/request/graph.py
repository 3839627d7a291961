"""A request as a workflow in API format, of the pack's own nodes: what is rendered is what is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...nodes import NODE_DISPLAY_NAME_MAPPINGS
from ...pipelines.weights.choice import DEFAULT, INPUTS
from ..core_nodes import CORE_NAMES

if TYPE_CHECKING:
    from ..prompt import Prompt
    from .rendering import PictureRequest, Rendering

_TITLES = {**CORE_NAMES, **NODE_DISPLAY_NAME_MAPPINGS}
_IMAGE, _REPORT = 0, 6  # outputs of AITK Sampler


class _Graph:
    """Nodes with the ids 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.nodes: Prompt = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        """Returns the new node's id."""
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": _TITLES[class_type]}}
        return node_id


def workflow_of(rendering: Rendering) -> Prompt:
    """The nodes that render a request whose files were found; picture ``i`` is saved as ``output_i``."""
    graph = _Graph()
    weights = rendering.weights
    options = {}
    if rendering.attention != "default":
        options["options"] = [_runtime_options(graph, rendering), 0]
    load = graph.add(
        "LoadAITKModel",
        model=rendering.model,
        weights=weights.weights,
        dtype=rendering.dtype,
        **{name: weights.files.get(role, DEFAULT) for role, name in INPUTS.items()},
        **options,
    )
    pipeline: Sequence[Any] = [load, 0]
    for lora in rendering.loras:
        node = graph.add(
            "ApplyAITKLoRA",
            pipeline=pipeline,
            lora_name=lora.name,
            strength=lora.strength,
            application=lora.application,
        )
        pipeline = [node, 0]
    shared: dict[str, Any] = {"pipeline": pipeline, "recipe": rendering.recipe}
    if rendering.recipe_options:
        shared["recipe_options"] = [graph.add("AITKRecipeOptions", **rendering.recipe_options), 0]
    for index, picture in enumerate(rendering.pictures):
        _add_picture(graph, picture, f"output_{index}", shared)
    return graph.nodes


def _runtime_options(graph: _Graph, rendering: Rendering) -> str:
    return graph.add(
        "AITKRuntimeOptions",
        transformer_quantization="model default",
        text_encoder_quantization="model default",
        text_encoder_attention="auto",
        transformer_attention=rendering.attention,
    )


def _add_picture(graph: _Graph, picture: PictureRequest, name: str, shared: dict[str, Any]) -> None:
    control = {}
    if picture.control_images:
        loaded = [graph.add("LoadImage", image=image) for image in picture.control_images.values()]
        images = {f"image_{number}": [node, 0] for number, node in enumerate(loaded, 1)}
        control["control"] = [graph.add("AITKControlImages", **images), 0]
    sampler = graph.add(
        "AITKSampler",
        **shared,
        prompt=picture.prompt,
        negative_prompt=picture.negative_prompt,
        width=picture.width,
        height=picture.height,
        steps=picture.steps,
        guidance_scale=picture.guidance_scale,
        seed=picture.seed,
        # it is in the prompt already
        trigger_word="",
        system_prompt=picture.system_prompt,
        batch_size=1,
        **control,
    )
    graph.add(
        "AITKSaveImage",
        images=[sampler, _IMAGE],
        report=[sampler, _REPORT],
        filename_prefix=name,
        format="png",
    )
