"""LoRA files: their formats (``formats``), whose they are (``families``), how they apply (``merged``, ``live``, ``stack``)."""
