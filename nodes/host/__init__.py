"""What runs the nodes: ComfyUI (``comfyui.py``, the only module that imports it), or a plain stand-in for it."""

from .current import current_host, serve, use_host
from .plain import PlainHost
from .protocol import Answer, Host, ProgressBar, SaveTarget

__all__ = ["Answer", "Host", "PlainHost", "ProgressBar", "SaveTarget", "current_host", "serve", "use_host"]
