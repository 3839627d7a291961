"""A command line of sd-scripts' lumina_minimal_inference.py. Imports no torch.

Names and defaults are the script's own, read in its ``setup_parser``; its way of sampling is the recipe ``sd-scripts``.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from ...pipelines.errors import InputError
from ...pipelines.models import catalogue
from ...pipelines.weights.choice import Choice
from ...pipelines.words import cut, shown
from .rendering import SEEDS, LoraUse, PictureRequest, Rendering

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.options import Attention, DType

RECIPE = "sd-scripts"
_SCRIPT = "lumina_minimal_inference.py"
_DTYPES: dict[str, DType] = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16", "fp32": "float32",
    "float32": "float32", "float": "float32",
}  # fmt: skip
_TEXT_LENGTH = 256  # tokens; the script's default, and the only one that the pack has


class _Parser(argparse.ArgumentParser):
    """One that raises this pack's error instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"--sd-scripts: {cut(message, 200)}. Correct the command line as {_SCRIPT} takes it.")


def read_command_line(line: str, draw: Callable[[], int]) -> Rendering:
    """What the script would render.

    Args:
        line: its arguments as a shell takes them, with or without what starts it, e.g. ``python
            lumina_minimal_inference.py --prompt "a red fox" ...``; its files' names are looked up later.
        draw: gives a seed where the line has none.

    Raises:
        InputError: the script would refuse the line, an argument is unknown, or the pack cannot do what it asks for.
    """
    given, unknown = _parser().parse_known_args(_arguments(line))
    if unknown:
        names = [argument for argument in unknown if argument.startswith("-")] or unknown
        listed = ", ".join(shown(name) for name in names[:10])
        raise InputError(f"--sd-scripts: {_SCRIPT} has no argument {listed}. Correct or remove it.")
    _refuse(given)
    seed = draw() if given.seed is None else given.seed
    picture = PictureRequest(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        width=given.image_width,
        height=given.image_height,
        steps=given.steps,
        guidance_scale=given.guidance_scale,
        seed=seed,
        system_prompt=given.system_prompt,
    )
    return Rendering(
        model=_model().id,
        recipe=RECIPE,
        loras=tuple(_lora(value, merged=given.merge_lora_weights) for value in given.lora_weights),
        pictures=(picture,),
        weights=Choice(
            given.pretrained_model_name_or_path, files={"encoder": given.gemma2_path, "autoencoder": given.ae_path}
        ),
        dtype=_DTYPES[given.dtype],
        recipe_options={
            "cfg_trunc_ratio": given.cfg_trunc_ratio,
            "renorm_cfg": given.renorm_cfg,
            "discrete_flow_shift": given.discrete_flow_shift,
            "system_prompt_on_negative": given.add_system_prompt_to_negative_prompt,
        },
        attention=_attention(given),
        device=given.device,
        notes=tuple(_notes(given, seed)),
    )


def _model() -> ModelFacts:
    return next(facts for facts in catalogue().values() if RECIPE in facts.recipes)


def _arguments(line: str) -> Sequence[str]:
    """The script's arguments: what starts it is left out, and a line may go on behind a backslash."""
    try:
        words = shlex.split(line.replace("\\\r\n", " ").replace("\\\n", " "))
    except ValueError as error:
        raise InputError(f"--sd-scripts: the command line cannot be split: {error}. Close its quotes.") from error
    starts = [index for index, word in enumerate(words) if word.replace("\\", "/").split("/")[-1] == _SCRIPT]
    return words[starts[0] + 1 :] if starts else words


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_SCRIPT, add_help=False)
    for name in ("--pretrained_model_name_or_path", "--gemma2_path", "--ae_path"):
        parser.add_argument(name, required=True)
    parser.add_argument("--prompt", default="A beautiful sunset over the mountains")
    for name in ("--negative_prompt", "--system_prompt"):
        parser.add_argument(name, default="")
    for name in ("--output_dir", "--device"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int)
    for name, whole in (("--steps", 36), ("--image_width", 1024), ("--image_height", 1024)):
        parser.add_argument(name, type=int, default=whole)
    parser.add_argument("--gemma2_max_token_length", type=int, default=_TEXT_LENGTH)
    numbers = (
        ("--guidance_scale", 3.5), ("--discrete_flow_shift", 6.0), ("--cfg_trunc_ratio", 0.25), ("--renorm_cfg", 1.0),
    )  # fmt: skip
    for name, number in numbers:
        parser.add_argument(name, type=float, default=number)
    for name in ("--dtype", "--gemma2_dtype", "--ae_dtype"):
        parser.add_argument(name, default="bf16")
    switches = (
        "--offload", "--add_system_prompt_to_negative_prompt", "--use_flash_attn", "--use_sage_attn",
        "--merge_lora_weights", "--interactive",
    )  # fmt: skip
    for name in switches:
        parser.add_argument(name, action="store_true")
    parser.add_argument("--lora_weights", nargs="*", default=[])
    return parser


def _refuse(given: argparse.Namespace) -> None:
    """Raises InputError where the pack cannot do what the script would."""
    if given.interactive:
        raise InputError("--sd-scripts: --interactive asks for prompts as it goes. Give one prompt's values instead.")
    dtypes = {name: getattr(given, name) for name in ("dtype", "gemma2_dtype", "ae_dtype")}
    for name, value in dtypes.items():
        if value not in _DTYPES:
            raise InputError(f"--sd-scripts: --{name} is {shown(value)}. Choose one of: {', '.join(_DTYPES)}.")
    if len({_DTYPES[value] for value in dtypes.values()}) > 1:
        said = ", ".join(f"--{name} {value}" for name, value in dtypes.items())
        raise InputError(f"--sd-scripts: this pack computes all parts in one dtype, not in {said}. Give all the same.")
    if given.gemma2_max_token_length != _TEXT_LENGTH:
        length = shown(given.gemma2_max_token_length)
        raise InputError(
            f"--sd-scripts: --gemma2_max_token_length is {length}, and this pack has {_TEXT_LENGTH} alone."
        )
    if given.seed is not None and not 0 <= given.seed < SEEDS:
        raise InputError(f"--sd-scripts: --seed is {shown(given.seed)}: choose 0 to 2^64 - 1.")


def _lora(value: str, *, merged: bool) -> LoraUse:
    """``path;multiplier``, or a path alone."""
    path, _, multiplier = value.partition(";")
    try:
        strength = float(multiplier) if ";" in value else 1.0
    except ValueError:
        strength = math.nan
    if not path or not math.isfinite(strength):
        raise InputError(
            f"--sd-scripts: --lora_weights {shown(value)} is no 'path;multiplier'. Write it like "
            "'my_lora.safetensors;0.8'."
        )
    return LoraUse(path, strength, "merged" if merged else "live")


def _attention(given: argparse.Namespace) -> Attention:
    # the script's transformer asks for sage first
    if given.use_sage_attn:
        return "sage"
    return "flash" if given.use_flash_attn else "default"


def _notes(given: argparse.Namespace, seed: int) -> Iterator[str]:
    if given.seed is None:
        yield f"--seed is not given: {seed} was drawn"
    if given.output_dir is not None:
        yield "--output_dir is not used: pictures go where --output says"
    if given.offload:
        yield "--offload is not used: the pack plans by itself what lies where"
