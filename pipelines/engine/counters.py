"""What an engine counts of its work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What the engine did since it was made; tests and the report read it.

    Attributes:
        parts_loaded: parts read from a checkpoint.
        bytes_moved: bytes copied to the device: parts that came, and blocks in their turns.
        bytes_read: bytes of tensors read from files: of parts, of LoRAs, of embeddings, and again to undo a merge.
        texts_encoded: texts that went through a text encoder.
        texts_from_disk: texts whose embeddings another process, or an earlier one, had stored.
        pictures_encoded: control images that went through an autoencoder.
        lora_files_read: LoRA files read.
        tensors_merged: a part's tensors that LoRAs were merged into.
        tensors_restored: a part's tensors that were made the checkpoint's again.
    """

    parts_loaded: int = 0
    bytes_moved: int = 0
    bytes_read: int = 0
    texts_encoded: int = 0
    texts_from_disk: int = 0
    pictures_encoded: int = 0
    lora_files_read: int = 0
    tensors_merged: int = 0
    tensors_restored: int = 0
