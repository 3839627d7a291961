"""LoRA files: ``formats`` reads them, ``families`` tells whose they are, ``merged``, ``live``, ``stack`` apply them."""
