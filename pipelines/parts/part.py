"""A part: what loads and holds one network of a model. Models are compositions of parts.

The engine, the planner and the report know parts and their roles; no part has a name that they know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..errors import FileError
from ..files.spans import reading
from ..layers.fill import build_empty, fill, parameter_shapes
from ..layers.holding import holding_of
from ..weights.source import check_complete

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..layers.cached_blocks import Returned
    from ..observer import Observer
    from ..options import Quantization, Role
    from ..weights.source import Source

_ACTIVATIONS = 1 << 30  # bytes beside the weights: a reserve, reasoned and not measured


class Part(ABC):
    """One network of a model: its files, its modules, what it needs of the device.

    Args:
        name: in its model, e.g. ``transformer``; that of the source's component.
    """

    role: ClassVar[Role]
    surplus: Sequence[str] = ()  # parts of tensors' names that files may hold and the network has no place for
    uneven: ClassVar[bool] = False  # whether several processes share its tokens out whose number they do not divide

    def __init__(self, name: str) -> None:
        self.name = name
        self._outline: tuple[Source, nn.Module] | None = None

    def check_kind(self, source: Source) -> None:
        """Raises FileError where the configuration is not this part's; reads no headers of weights.

        What the released files have, and this one contradicts, is named here.
        """
        del source

    def check_files(self, source: Source) -> None:
        """Raises FileError where tensors are missing, damaged, or of other shapes than the configuration says."""
        check_complete(source, parameter_shapes(self.outline(source)), self.surplus)

    @abstractmethod
    def empty(self, source: Source) -> nn.Module:
        """What :meth:`lora_root` gives of the loaded part, with shapes but without storage; raises FileError.

        Its names are the source's, and it has what :meth:`load` fills and nothing else: memory is planned by it.
        """

    def outline(self, source: Source) -> nn.Module:
        """What :meth:`empty` gives, to be looked at: made once for all who ask, until the part is loaded."""
        if self._outline is None or self._outline[0] != source:
            self._outline = source, self.empty(source)
        return self._outline[1]

    def load(
        self,
        source: Source,
        dtype: torch.dtype,
        quantization: Quantization,
        plain: Sequence[str],
        observer: Observer,
        only: Sequence[str] = (),
    ) -> nn.Module:
        """Loads the part to the CPU.

        Args:
            source: where it lies.
            dtype: what it runs in.
            quantization: how the weights of its layers are held.
            plain: names of layers that are not quantised, see :class:`..layers.holding.Selected`.
            observer: told how much is read; asked for interruption before each tensor.
            only: names of the layers that alone are quantised; empty is all but those.
        """
        model, self._outline = self.outline(source), None
        names, infos = parameter_shapes(model), source.tensor_infos()
        total = sum(infos[name].size for name in names if name in infos)
        what = f"loading {self.name} of {source.name}" + (f" as {quantization}" if quantization != "none" else "")
        tensors, holding = source.read(names), holding_of(quantization, plain, only)
        return fill(
            model, tensors, dtype, f"{source.name} {self.name}", reading(observer, what, total), holding=holding
        )

    def lora_root(self, module: nn.Module) -> nn.Module:
        """The module in a loaded part whose names LoRA files use."""
        return module

    def blocks(self, root: nn.Module) -> Sequence[nn.Module]:
        """The main blocks, in the order of their calls, that can be kept off the device until their turn.

        Args:
            root: what :meth:`lora_root` or :meth:`empty` gives.
        """
        return []

    def returned(self, block: nn.Module) -> Returned:
        """What a main block gives."""
        return "tokens"

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        """About how many bytes it needs on the device beside its weights.

        Args:
            latents: shape of one picture's latents; None where there will be no picture.
            dtype: what it runs in.
        """
        return _ACTIVATIONS


class Network(Part):
    """A part whose class diffusers' configuration names.

    Args:
        name: see :class:`Part`.
        network: a class with diffusers' ``from_config``.
        blocks: names of its lists of main blocks, in the order of their calls.
        needs: closes the message about another class: what this model is made with.
    """

    role = "denoiser"

    def __init__(self, name: str, network: type[nn.Module], blocks: Sequence[str], needs: str = "") -> None:
        super().__init__(name)
        self._class = network
        self._blocks = blocks
        self._needs = needs

    def check_kind(self, source: Source) -> None:
        found = source.config().get("_class_name")
        if found != self._class.__name__:
            what = self._needs or f"not {self._class.__name__}"
            raise FileError(f"{source.name!r} has a {found} as {self.name}, {what}.")

    def empty(self, source: Source) -> nn.Module:
        config = source.config()
        made: Any = self._class
        return cast(
            "nn.Module", build_empty(lambda: made.from_config(config), f"{source.config_name} of {source.name!r}")
        )

    def blocks(self, root: nn.Module) -> Sequence[nn.Module]:
        return [block for name in self._blocks for block in root.get_submodule(name).children()]


class Autoencoder(Network):
    """Between latents and pixels. Latents come in two scales: the model's own, and that of ComfyUI's VAE nodes."""

    role = "autoencoder"

    @abstractmethod
    def encode(self, module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [1, 3, H, W] of -1..1 -> the model's latents, the mean: nothing is drawn.

        Args:
            module: the loaded part.
            pixels: on its device, in its dtype.
        """

    @abstractmethod
    def to_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        """A model's latents -> the scale that ComfyUI's VAE nodes use."""

    @abstractmethod
    def from_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        """The inverse of :meth:`to_comfy`."""
