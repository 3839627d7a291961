"""How a model's parts are held and placed on this machine: from sizes to a plan. Imports no torch, reads no weights.

Two memories decide. The computer's own holds every part between its turns; where it cannot, a part is quantised if its
model says so, and encoders and denoisers take turns in it. The device's holds the part that is used; where it
cannot, the part's last blocks stay behind and come for their own call alone. Only quantisation changes a picture.

What a user chose is never changed, and nothing is refused: where no plan is known to fit, the smallest one runs.

Sizes are bytes; texts say GB of 10**9 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..options import Quantization, Role

# Kept for the operating system, a browser, and Python with torch and its CUDA libraries (about 3 GiB resident), and a
# share for what grows with the machine: file caches and other programs.
_RAM_RESERVE = 4 << 30
_RAM_SHARE = 20
# Kept on the device beside weights and activations: cuBLAS' and cuDNN's workspaces, and a share for the gaps that
# torch's allocator leaves between blocks of different sizes.
_DEVICE_RESERVE = 512 << 20
_DEVICE_SHARE = 32
_ALTERNATING: tuple[Role, ...] = ("encoder", "denoiser")


@dataclass(frozen=True)
class DeviceMemory:
    """A compute device's memory, in bytes.

    Attributes:
        total: what is built in.
        free: what a run can have: free now, held by this process for later use, or given up when room is asked for.
    """

    total: int
    free: int

    @property
    def usable(self) -> int:
        """What a plan fills."""
        return max(0, self.free - _DEVICE_RESERVE - self.free // _DEVICE_SHARE)


def usable_ram(total: int) -> int:
    """What the weights may take of the computer's memory.

    From the total, not from what is free: that changes with what this process itself holds, and a plan that followed it
    would quantise in one run and not in the next.
    """
    return max(0, total - _RAM_RESERVE - total // _RAM_SHARE)


@dataclass(frozen=True)
class PartSizes:
    """A part in one quantisation, in bytes.

    Attributes:
        weights: all of them.
        blocks: those in each block that can come for its own call, in order.
        scratch: the largest weight as it is made dense for its use; 0 where all are dense.
    """

    weights: int
    blocks: tuple[int, ...] = ()
    scratch: int = 0


@dataclass(frozen=True)
class PartNeeds:
    """What a plan has to know of a part.

    Attributes:
        part: which.
        role: what it does.
        quantization: the user's, or what ``model default`` means.
        sizes: in each quantisation that can be chosen: that one, and ``fallback``.
        fallback: the quantisation where memory cannot hold the part otherwise; None where the user or the model says
            that there is none.
        activations: bytes on the device beside the weights.
        loras: bytes of the branches on it.
        least_streamed: the user's; more blocks than there are means all.
        whole: whether the user wants all of it on the device, whatever the room.
    """

    part: str
    role: Role
    quantization: Quantization
    sizes: Mapping[Quantization, PartSizes]
    fallback: Quantization | None = None
    activations: int = 0
    loras: int = 0
    least_streamed: int = 0
    whole: bool = False

    def decide(self, ram: int) -> Quantization:
        """The quantisation on a machine with ``ram`` bytes in total: always the same one there."""
        if self.fallback is None or self.sizes[self.quantization].weights <= usable_ram(ram):
            return self.quantization
        return self.fallback


@dataclass(frozen=True)
class PartPlan:
    """One part of a plan.

    Attributes:
        part: which.
        quantization: as decided.
        decided_here: whether the plan chose it, and not the user or the model's default.
        weights: bytes.
        streamed: how many blocks, from the last, come to the device for their own call alone.
        blocks: how many there are.
        beside: bytes that it needs on the device beside its weights.
        device: bytes that it needs there at most at one time.
        leaves_before: the parts that must not be in memory when it is loaded.
    """

    part: str
    quantization: Quantization
    decided_here: bool
    weights: int
    streamed: int
    blocks: int
    beside: int
    device: int
    leaves_before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a run holds and places its parts.

    Attributes:
        parts: each part's.
        alternating: encoders, then denoisers.
        take_turns: whether these leave memory before others of them are loaded.
        memory: the device's, None where it has none of its own.
        ram: bytes of the computer's memory in total.
        reasons: why it is so, a line each; nothing where everything fits as it is.
        notes: those reasons that change the picture, or mean that the run may fail.
    """

    parts: tuple[PartPlan, ...]
    alternating: tuple[str, ...]
    take_turns: bool
    memory: DeviceMemory | None
    ram: int
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    def part(self, name: str) -> PartPlan:
        return next(part for part in self.parts if part.part == name)


def make_plan(parts: Sequence[PartNeeds], memory: DeviceMemory | None, ram: int) -> Plan:
    """The plan of a run.

    Args:
        parts: of the model.
        memory: the device's; None where it has none of its own: there nothing is streamed that the user did not ask
            for.
        ram: bytes of the computer's memory in total.
    """
    reasons: list[str] = []
    notes: list[str] = []
    room = usable_ram(ram)
    plans = [_plan_part(needs, memory, ram, reasons, notes) for needs in parts]
    alternating = _alternating(parts)
    take_turns = len(alternating) > 1 and sum(plan.weights for plan in plans) > room
    if take_turns:
        named = " and ".join(f"the {_title(p.part)}'s {gb(p.weights)}" for p in plans if p.part in alternating)
        reasons.append(f"{named} do not fit into {gb(room)} of memory together: one leaves before the other is loaded")
        roles: dict[str, Role] = {needs.part: needs.role for needs in parts}
        plans = [replace(plan, leaves_before=_leaves_before(plan, plans, roles, room)) for plan in plans]
    return Plan(tuple(plans), alternating, take_turns, memory, ram, tuple(reasons), tuple(notes))


def _alternating(parts: Sequence[PartNeeds]) -> tuple[str, ...]:
    return tuple(needs.part for role in _ALTERNATING for needs in parts if needs.role == role)


def _leaves_before(plan: PartPlan, plans: Sequence[PartPlan], roles: Mapping[str, Role], room: int) -> tuple[str, ...]:
    """The parts that must not be in memory when this one is loaded, where parts take turns."""
    role = roles[plan.part]
    if role not in _ALTERNATING:
        return ()
    # parts of one role are used right after each other: they part only where they must
    apart = sum(other.weights for other in plans if roles[other.part] == role) > room
    others = [other.part for other in plans if other is not plan and roles[other.part] in _ALTERNATING]
    return tuple(other for other in others if apart or roles[other] != role)


def _plan_part(
    needs: PartNeeds, memory: DeviceMemory | None, ram: int, reasons: list[str], notes: list[str]
) -> PartPlan:
    title, room = _title(needs.part), usable_ram(ram)
    quantization = needs.decide(ram)
    sizes, wanted = needs.sizes[quantization], needs.sizes[needs.quantization]
    weights = sizes.weights + needs.loras
    if quantization != needs.quantization:
        line = f"the {title}'s {gb(wanted.weights)} do not fit into {gb(room)} of memory: {quantization}, {gb(weights)}"
        reasons.append(line)
        notes.append(f"{line}. This changes the picture")
    if weights > room:
        line = (
            f"the {title}'s {gb(weights)} do not fit into {gb(room)} of memory: the system swaps, or ends the program"
        )
        reasons.append(line)
        notes.append(line)
    # LoRAs are counted beside the blocks: which ones they are on is known once they are read
    beside = needs.activations + sizes.scratch
    streamed = min(needs.least_streamed, len(sizes.blocks))
    if memory is not None:
        while (
            not needs.whole
            and streamed < len(sizes.blocks)
            and _on_device(sizes, streamed) + needs.loras + beside > memory.usable
        ):
            streamed += 1
        whole, device = (_on_device(sizes, count) + needs.loras + beside for count in (0, streamed))
        if streamed and whole > memory.usable:
            reasons.append(
                f"the {title} needs {gb(whole)} on the device, where {gb(memory.usable)} can be used: {streamed} of "
                f"its {len(sizes.blocks)} blocks come for their turn alone"
            )
        if device > memory.usable:
            line = (
                f"the {title} needs {gb(device)} on the device{'' if needs.whole else ' at the least'}, where "
                f"{gb(memory.usable)} can be used: it "
                "may run out of memory"
            )
            reasons.append(line)
            notes.append(line)
    return PartPlan(
        needs.part,
        quantization,
        quantization != needs.quantization,
        weights,
        streamed,
        len(sizes.blocks),
        beside,
        _on_device(sizes, streamed) + needs.loras + beside,
    )


def _on_device(sizes: PartSizes, streamed: int) -> int:
    """Bytes of weights on the device at most: what stays, and of the blocks that come the one that computes and the
    next. Falls with ``streamed``, but for the second."""
    away = sorted(sizes.blocks[len(sizes.blocks) - streamed :])
    return sizes.weights - sum(away) + sum(away[-2:])


def gb(size: int) -> str:
    """``"64.4 GB"``, of 10**9 bytes."""
    return f"{size / 1e9:.1f} GB"


def _title(part: str) -> str:
    return part.replace("_", " ")
