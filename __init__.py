"""comfyui-aitk: AI Toolkit's sampling in ComfyUI, to the pixel. Importing this costs milliseconds."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .nodes.editor import ANSWERS
from .nodes.host import serve

WEB_DIRECTORY = "./web"
serve(ANSWERS)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
