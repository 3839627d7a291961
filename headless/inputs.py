"""What a node class takes: its inputs, which of them are widgets, and the values that a workflow stored for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..pipelines.errors import WorkflowError

Spec = tuple[Any, dict[str, Any]]
"""An input's type (a list for an old-style choice, else a name) and its options."""

_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "BOUNDING_BOX", "CURVE")
_DYNAMIC_CHOICE = "COMFY_DYNAMICCOMBO_V3"
_SEEDS = ("seed", "noise_seed")


def declared_inputs(definition: Mapping[str, Any]) -> dict[str, Spec]:
    """The class's inputs in the editor's order: required ones, then optional ones."""
    declared = definition.get("input") or {}
    order = definition.get("input_order") or {}
    result: dict[str, Spec] = {}
    for group in ("required", "optional"):
        members = declared.get(group) or {}
        listed = [name for name in order.get(group) or () if name in members]
        for name in [*listed, *(name for name in members if name not in listed)]:
            result[name] = _spec(members[name])
    return result


def known_input(definition: Mapping[str, Any], name: str) -> bool:
    """True if the class takes an input of that name; inputs of a dynamic group are called ``group.member``."""
    declared = declared_inputs(definition)
    group = declared.get(name.split(".")[0])
    return name in declared or (group is not None and str(group[0]).startswith("COMFY_"))


def is_combo(spec: Spec) -> bool:
    """True for a choice from a list."""
    return isinstance(spec[0], list) or spec[0] == "COMBO"


def choices(spec: Spec) -> list[Any]:
    """What a choice offers."""
    return spec[0] if isinstance(spec[0], list) else list(spec[1].get("options") or ())


def is_widget(spec: Spec) -> bool:
    """True if the editor shows the input as a field of its own, whose value the workflow stores."""
    if spec[1].get("forceInput"):
        return False
    return isinstance(spec[0], list) or spec[0] in (*_WIDGET_TYPES, _DYNAMIC_CHOICE) or "widgetType" in spec[1]


def widget_values(stored: object, declared: Mapping[str, Spec], where: str) -> dict[str, Any]:
    """The values of a node's widgets by input name, defaults where the workflow has none.

    Args:
        stored: the node's ``widgets_values``: by name, or by position in the editor's order.
        declared: the class's inputs, see :func:`declared_inputs`.
        where: the node, as an error names it.
    """
    widgets = {name: spec for name, spec in declared.items() if is_widget(spec)}
    if isinstance(stored, dict):
        return _named_values(stored, widgets)
    if stored is not None and not isinstance(stored, list):
        raise WorkflowError(f"{where}: 'widgets_values' is neither a list nor an object. Save the workflow again.")
    remaining = iter(stored or ())
    values: dict[str, Any] = {}
    for name, spec in widgets.items():
        values.update(_positional_values(name, spec, remaining))
    return values


def as_prompt_value(value: Any) -> Any:
    """A widget's value as API format holds it; a bare list there would mean a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _spec(raw: Any) -> Spec:
    options = raw[1] if len(raw) > 1 and isinstance(raw[1], dict) else {}
    kind = list(raw[0]) if isinstance(raw[0], tuple) else raw[0]
    return kind, options


def _named_values(stored: Mapping[str, Any], widgets: Mapping[str, Spec]) -> dict[str, Any]:
    values = {name: _value_or_default(stored.get(name), spec) for name, spec in widgets.items()}
    nested = {name: stored[name] for name in stored if "." in name and name.split(".")[0] in widgets}
    return {name: as_prompt_value(value) for name, value in (values | nested).items() if value is not None}


def _positional_values(name: str, spec: Spec, remaining: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Takes one input's entries from ``remaining``, the fields that depend on its value included."""
    value = _value_or_default(next(remaining, None), spec)
    for _ in range(extra_entries(name, spec)):
        next(remaining, None)
    if value is not None:
        yield name, as_prompt_value(value)
    if spec[0] == _DYNAMIC_CHOICE:
        chosen = next((option for option in spec[1].get("options") or () if option.get("key") == value), {})
        for inner, inner_spec in declared_inputs({"input": chosen.get("inputs")}).items():
            if is_widget(inner_spec):
                yield from _positional_values(f"{name}.{inner}", inner_spec, remaining)


def extra_entries(name: str, spec: Spec) -> int:
    """How many entries of the editor's own follow the value: 'control after generate', and a list filter's text."""
    control = spec[1].get("control_after_generate")
    if control is None:
        control = spec[0] == "INT" and name in _SEEDS
    if not control:
        return 0
    return 2 if is_combo(spec) else 1


def _value_or_default(value: Any, spec: Spec) -> Any:
    """The stored value, or what the editor puts where a workflow (of an older version of the node) has none."""
    if value is not None:
        return value
    kind, options = spec
    if options.get("default") is not None:
        return options["default"]
    if kind == _DYNAMIC_CHOICE:
        return next((option.get("key") for option in options.get("options") or ()), None)
    if is_combo(spec):
        return next(iter(choices(spec)), None)
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False, "STRING": ""}.get(kind)
