"""The text of a job's config as plain data, read as AI Toolkit reads it, within bounds that no real job comes near.

A folder may be anybody's: YAML is read by PyYAML's safe constructors, and neither size nor depth nor an alias can make
it cost more than its length. AI Toolkit takes every config through JSON, which decides what is left of a value.

Source: AI Toolkit toolkit/config.py (27a03a91).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ..errors import FileError

_LONGEST = 16 << 20  # characters of a config
_LONGEST_OF_HAND = 1 << 18  # characters of one that Python's own parser reads: it takes a minute for six million
_LONGEST_SCALAR = 1 << 16  # characters of one value
_DEEPEST = 64
_REFUSED = "cannot be read as a job's config"


def _ordered(loader: Any, node: yaml.Node) -> dict[Any, Any]:
    """An ``OrderedDict`` as PyYAML writes one by itself: a list that holds a list of pairs."""
    (pairs,) = loader.construct_sequence(node, deep=True) or ([],)
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 by safe constructors, and what AI Toolkit adds: ``1e3`` is a number without a point or a sign too."""


# libyaml's parser is ten times as fast, and not in every build of PyYAML; it refuses `{a:}`, which Python's takes
_FastLoader: Any = type("_FastLoader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})

for _loader in (_Loader, _FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$|\._[0-9_]*$"),
        list("-+.0123456789"),
    )
    _loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as AI Toolkit's loader gives it: dates stay dates.

    Args:
        where: names the file in errors.

    Raises:
        FileError: it is no YAML, too long or deep, or has an alias or a tag that no job's config has.
    """
    if len(text) > _LONGEST:
        raise FileError(f"{where} {_REFUSED}: it has {len(text):,} characters. Choose the folder of a training job.")
    try:
        try:
            return _load(text, where, _FastLoader)
        except yaml.YAMLError:
            if len(text) > _LONGEST_OF_HAND:
                raise
            return _load(text, where, _Loader)
    except yaml.YAMLError as error:
        raise FileError(f"{where} {_REFUSED}: it is no YAML that AI Toolkit writes{_line(error)}.") from error
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        # PyYAML's constructors raise these on values that contradict their tags, e.g. `!!int ""`
        raise FileError(f"{where} {_REFUSED}: a value in it is none that YAML knows.") from error


def parse_json(text: str, where: str) -> Any:
    """A JSON text; raises FileError where it is none or too long, ``where`` naming the file."""
    if len(text) > _LONGEST:
        raise FileError(f"{where} {_REFUSED}: it has {len(text):,} characters. Choose the folder of a training job.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} {_REFUSED}: it is no JSON.") from error


def plain(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A config after its way through JSON, with ``[name]`` replaced in every text.

    Raises:
        TypeError, ValueError, RecursionError: JSON has no such value, e.g. a date; AI Toolkit dies of the same.
    """
    return json.loads(json.dumps(config).replace("[name]", name))


def object_or_empty(value: Any) -> Mapping[str, Any]:
    """A value of a config where it is an object; an empty one where it is anything else."""
    return value if isinstance(value, Mapping) else {}


def _load(text: str, where: str, loader: Any) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            raise FileError(
                f"{where} {_REFUSED}: it has an alias in line {event.start_mark.line + 1}, which AI Toolkit never "
                "writes. Write the value out."
            )
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST_SCALAR:
            raise FileError(f"{where} {_REFUSED}: a value of it has {len(event.value):,} characters.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise FileError(f"{where} {_REFUSED}: it is more than {_DEEPEST} levels deep.")
    return yaml.load(text, Loader=loader)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1})" if mark is not None else ""
