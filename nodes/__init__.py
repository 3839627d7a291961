"""The nodes, one file per family; ``host/comfyui.py`` is the only door to ComfyUI."""

from .compare import AITKComparePreviews
from .control import AITKControlImages
from .latents import AITKDecodeLatent, AITKEncodeImage
from .load_model import LoadAITKModel
from .lora import ApplyAITKLoRA
from .lora_stack import AITKLoRAStack
from .recipe_options import AITKRecipeOptions
from .recovery_adapter import AITKRecoveryAdapter
from .runtime_options import AITKRuntimeOptions
from .sampler import AITKSampler
from .save_image import AITKSaveImage
from .training_adapter import AITKTrainingAdapter
from .training_job import AITKReplayPreviews, AITKTrainingJob

# a literal table: ComfyUI-Manager's scanner looks for it
NODE_CLASS_MAPPINGS = {
    "LoadAITKModel": LoadAITKModel,
    "AITKRuntimeOptions": AITKRuntimeOptions,
    "ApplyAITKLoRA": ApplyAITKLoRA,
    "AITKControlImages": AITKControlImages,
    "AITKSampler": AITKSampler,
    "AITKSaveImage": AITKSaveImage,
    "AITKRecipeOptions": AITKRecipeOptions,
    "AITKTrainingAdapter": AITKTrainingAdapter,
    "AITKComparePreviews": AITKComparePreviews,
    "AITKTrainingJob": AITKTrainingJob,
    "AITKReplayPreviews": AITKReplayPreviews,
    "AITKEncodeImage": AITKEncodeImage,
    "AITKDecodeLatent": AITKDecodeLatent,
    "AITKLoRAStack": AITKLoRAStack,
    "AITKRecoveryAdapter": AITKRecoveryAdapter,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadAITKModel": "Load AITK Model",
    "AITKRuntimeOptions": "AITK Runtime Options",
    "ApplyAITKLoRA": "Apply AITK LoRA",
    "AITKControlImages": "AITK Control Images",
    "AITKSampler": "AITK Sampler",
    "AITKSaveImage": "AITK Save Image",
    "AITKRecipeOptions": "AITK Recipe Options",
    "AITKTrainingAdapter": "AITK Training Adapter",
    "AITKComparePreviews": "AITK Compare Previews",
    "AITKTrainingJob": "AITK Training Job",
    "AITKReplayPreviews": "AITK Replay Previews",
    "AITKEncodeImage": "AITK Encode Image",
    "AITKDecodeLatent": "AITK Decode Latent",
    "AITKLoRAStack": "AITK LoRA Stack",
    "AITKRecoveryAdapter": "AITK Recovery Adapter",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
