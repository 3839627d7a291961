"""llama.cpp's names of a vision tower, which it keeps in a GGUF file of its own (``mmproj``). Imports no torch.

Its converter (conversion/qwenvl.py and qwen3vl.py) splits the kernels of the patches' convolution by their two frames,
and Qwen2.5-VL's queries, keys and values, which the tower has in one; both are put together again here. Nothing else is
changed: the values are the tower's, rounded to what they are stored in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...weights.layout import Infos, Place

TOWER = "visual."  # in front of a tower's names in the model
PATCHES = f"{TOWER}patch_embed.proj.weight"
_PATCHES = ("v.patch_embd.weight", "v.patch_embd.weight.1")  # of the first and the second frame
SIGNATURE = (*_PATCHES, "v.blk.0.ln1.weight")
_BLOCK = re.compile(r"v\.blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_DEEP = re.compile(r"v\.deepstack\.(\d{1,4})\.(\w+)\.(weight|bias)")
_SHARES = {"attn_q": 0, "attn_k": 1, "attn_v": 2}
# those that both towers have
_COMMON = {"attn_qkv": "attn.qkv", "attn_out": "attn.proj", "ln1": "norm1", "ln2": "norm2"}


@dataclass(frozen=True)
class TowerNames:
    """How llama.cpp calls the tensors of one kind of tower.

    Attributes:
        projector: llama.cpp's name of the kind.
        top: its name -> the tower's, without the leaf.
        block: in a block, beside those that all have, likewise.
        deep: in what stands behind some blocks, likewise.
        deep_behind: which blocks these are; llama.cpp's names have their numbers, and the tower counts them.
    """

    projector: str
    top: Mapping[str, str]
    block: Mapping[str, str]
    deep: Mapping[str, str] = field(default_factory=dict)
    deep_behind: tuple[int, ...] = ()

    def places(self, infos: Infos) -> dict[str, list[Place]]:
        """The places of those of ``infos`` that are a tower's.

        Raises:
            ValueError: shapes make no sense, or other blocks than the model's have something behind them.
        """
        found: dict[str, list[Place]] = {}
        deep = {int(match[1]) for name in infos if (match := _DEEP.fullmatch(name))}
        if deep != set(self.deep_behind):
            raise ValueError(
                f"its vision tower has deepstack tensors behind the blocks {sorted(deep)}, and this model reads "
                f"{list(self.deep_behind)}"
            )
        for name, info in infos.items():
            if name.startswith(("v.", "mm.")):
                found[name] = [self._place(name, info.shape)]
        return found

    def _place(self, name: str, shape: tuple[int, ...]) -> Place:
        if name in _PATCHES:
            if len(shape) != 4:
                raise ValueError(f"{name} has shape {list(shape)}, and the kernels of one frame have four sides")
            frame = _PATCHES.index(name)
            whole = (*shape[:2], 1, *shape[2:])
            return Place(PATCHES, shape=whole, into=(frame, frame + 1, 2), axis=2)
        if match := _BLOCK.fullmatch(name):
            number, inner, leaf = match.groups()
            if inner in _SHARES:
                first, rows = _SHARES[inner] * shape[0], shape[0]
                return Place(f"{TOWER}blocks.{number}.attn.qkv.{leaf}", into=(first, first + rows, 3 * rows))
            own = self.block.get(inner) or _COMMON.get(inner, inner)
            return Place(f"{TOWER}blocks.{number}.{own}.{leaf}")
        if match := _DEEP.fullmatch(name):
            number, inner, leaf = match.groups()
            rank = self.deep_behind.index(int(number))
            return Place(f"{TOWER}deepstack_merger_list.{rank}.{self.deep.get(inner, inner)}.{leaf}")
        module, _, leaf = name.rpartition(".")
        return Place(f"{TOWER}{self.top.get(module, module)}.{leaf}")


QWEN2_5 = TowerNames(
    projector="qwen2.5vl_merger",
    top={"v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2"},
    block={"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
)
QWEN3 = TowerNames(
    projector="qwen3vl_merger",
    top={
        "v.patch_embd": "patch_embed.proj", "v.position_embd": "pos_embed", "v.post_ln": "merger.norm",
        "mm.0": "merger.linear_fc1", "mm.2": "merger.linear_fc2",
    },
    block={"ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2"},
    deep={"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"},
    deep_behind=(5, 11, 17),
)  # fmt: skip
