"""What a LoRA file tells before anything runs: its card, whether it fits the model that is chosen, its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import AITKError
from ...pipelines.files.header import FileStamp
from ...pipelines.models import find_model
from ...pipelines.weights.choice import DEFAULT, Choice
from ...pipelines.weights.untrusted_names import resolve_name
from ..shared import roots

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.options import Role
    from ...pipelines.weights.checkpoint import Checkpoint


def lora(query: Mapping[str, str]) -> dict[str, Any]:
    """The card of the file ``name``, and, where ``model`` is given, whether it fits it.

    ``weights``, ``text_encoder`` and ``vae`` are Load AITK Model's: with them a file is checked as the run will.

    Raises:
        FileError, InputError: there is no such file or model.
    """
    # here and below: the readers of files are imported by the first question, not with the pack
    from ...pipelines.lora.card import fit, read_card

    name = query.get("name", "")
    path = resolve_name(name, roots("loras"), "LoRA")
    card = asdict(read_card(path))
    if not query.get("model"):
        return card
    facts = find_model(query["model"])
    return card | {"model": facts.title, "fit": asdict(fit(path, name, facts, _local(facts, query)))}


def lora_digest(query: Mapping[str, str]) -> dict[str, Any]:
    """The SHA-256 of the file ``name``, as the sampler's report has it; a large file takes a second.

    Raises:
        FileError: there is no such file.
    """
    from ...pipelines.run.report import digest

    return {"sha256": digest(FileStamp.of(resolve_name(query.get("name", ""), roots("loras"), "LoRA")))}


def _local(facts: ModelFacts, query: Mapping[str, str]) -> Checkpoint | None:
    """The chosen weights as far as LoRAs need them; None where they are not in ComfyUI's folders, or do not open."""
    from ...pipelines.weights.checkpoint import Checkpoint
    from ...pipelines.weights.choose import local_sources

    weights, encoder, autoencoder = (query.get(name) or DEFAULT for name in ("weights", "text_encoder", "vae"))
    files: dict[Role, str] = {"encoder": encoder, "autoencoder": autoencoder}
    try:
        found = local_sources(facts.files, Choice(weights, "", files), roots)
    except (AITKError, OSError):
        # that is for Load AITK Model to say
        return None
    needed = {spelling.part for spelling in facts.lora.spellings}
    return Checkpoint(weights, tuple(found.values())) if needed <= found.keys() else None
