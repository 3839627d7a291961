"""The command ``locales``: what of the translations in ``locales/`` is missing, left over, older than its English, or
says other names and numbers.

The English texts are the nodes' own, and those of the editor's extension, ``web/js/english.js``. ComfyUI reads the
files of ``locales/<language>`` (``app/custom_node_manager.py`` of 0.28.2); ``locales/sources.json`` is ours: from which
English text each translation was made, as a digest.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..pipelines.errors import InputError
from .local import exit_status

LOCALES = Path(__file__).resolve().parent.parent / "locales"
SOURCES = LOCALES / "sources.json"
ENGLISH = LOCALES.parent / "web" / "js" / "english.js"
# file of a language -> what stands before its keys: the nodes' texts, the extension's and menu entries, commands
FILES = {"nodeDefs.json": "", "main.json": "", "commands.json": "commands."}
# columns; a longer label of a list leaves a classic node no room for the value beside it
LONGEST_LABEL = len("text_encoder_attention")

_QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)")
# one that stands by itself: the 8 of `qfloat8` is part of a name
_NUMBER = re.compile(r"(?<![A-Za-z\d.-])\d+(?:[.,-]\d+)*(?![A-Za-z\d_])")
# a name of code, a file, a model or a product, and no English word: `owner/name`, `Gemma2`, `torch.compile`, `LyCORIS`
_NAME = re.compile(r"[_/%\[<]|--|[A-Za-z]\d|\d[A-Za-z]|[A-Z].*[A-Z]|\w\w\.\w\w")
_PRODUCTS = (
    "AI Toolkit", "Hugging Face", "diffusers", "kohya", "sd-scripts", "optimum-quanto", "torchao", "triton", "xformers",
    "sageattention", "flash-attn", "Lumina",
)  # fmt: skip
_UNITS = ("GB",)
# what the page takes for a placeholder, a link or a plural: frontend 1.45, formatUtil.ts
_SYNTAX = "{}@|"
_PLACE = re.compile(r"\{\w+\}")  # of a value, in the extension's own texts, which the page does not read
_OWN = "aitk."


@dataclass(frozen=True)
class Text:
    """A text in English.

    Attributes:
        words: the text.
        choices: of a list's name and tooltip, the list's values, which no language translates.
    """

    words: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """What is wrong with a translation: ``key`` is that of :func:`english_texts`."""

    key: str
    what: str


def english_texts() -> dict[str, Text]:
    """What the nodes and the extension say, by key: ``AITKSampler.inputs.seed.tooltip``, ``aitk.card.no``."""
    return _node_texts() | _page_texts()


def _page_texts() -> dict[str, Text]:
    """The extension's: its own, and those of its commands, which the page shows in its menu too."""
    script = ENGLISH.read_text("utf-8")
    table = script[script.index("{", script.index("ENGLISH =")) : script.rindex("}") + 1]
    found = {}
    for key, words in json.loads(table).items():
        if key.startswith("commands."):
            found |= {key: Text(words), f"menuLabels.{words}": Text(words)}
        else:
            found[_OWN + key] = Text(words)
    return found


def _node_texts() -> dict[str, Text]:
    found = {}
    for node, cls in NODE_CLASS_MAPPINGS.items():
        found[f"{node}.display_name"] = Text(NODE_DISPLAY_NAME_MAPPINGS[node])
        found[f"{node}.description"] = Text(cls.DESCRIPTION)
        declared: Mapping[str, Mapping[str, Any]] = cls.INPUT_TYPES()
        for name, (kind, about) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            choices = () if isinstance(kind, str) else tuple(kind)
            found[f"{node}.inputs.{name}.name"] = Text(about.get("display_name", name), choices)
            found[f"{node}.inputs.{name}.tooltip"] = Text(about["tooltip"], choices)
        outputs = zip(getattr(cls, "RETURN_NAMES", ()), getattr(cls, "OUTPUT_TOOLTIPS", ()), strict=True)
        for place, (name, tooltip) in enumerate(outputs):
            found[f"{node}.outputs.{place}.name"] = Text(name)
            found[f"{node}.outputs.{place}.tooltip"] = Text(tooltip)
    return found


def languages() -> list[str]:
    """The languages of ``locales/``, by ComfyUI's codes."""
    return sorted(path.name for path in LOCALES.iterdir() if path.is_dir())


def translated_texts(language: str) -> dict[str, str]:
    """What ComfyUI shows in a language, with the keys of :func:`english_texts`."""
    files = {LOCALES / language / name: above for name, above in FILES.items()}
    trees = ((json.loads(path.read_text("utf-8")), above) for path, above in files.items() if path.is_file())
    return {key: words for tree, above in trees for key, words in _flat(tree, above)}


def made_from(language: str) -> dict[str, str]:
    """The digest of the English text of each translation, from when it was made."""
    return {key: digests[language] for key, digests in _sources().items() if language in digests}


def digest(words: str) -> str:
    return sha256(words.encode()).hexdigest()[:10]


def find_faults(english: Mapping[str, Text], texts: Mapping[str, str], sources: Mapping[str, str]) -> list[Fault]:
    """All that is wrong with a language.

    Args:
        english: the texts.
        texts: the translations, with the same keys.
        sources: the digests of the English texts from which they were made.
    """
    found = [Fault(key, "left over: nothing has such a text") for key in texts if key not in english]
    for key, text in english.items():
        if key not in texts:
            found.append(Fault(key, "missing"))
            continue
        if sources.get(key) != digest(text.words):
            found.append(Fault(key, "older than its English text"))
        found += [Fault(key, what) for what in _wrong(key, english, texts)]
    return found


def _wrong(key: str, english: Mapping[str, Text], texts: Mapping[str, str]) -> Iterator[str]:
    own, said = english[key], texts[key]
    if _numbers(said) != _numbers(own.words):
        yield "other numbers than in English"
    plain = _PLACE.sub("", said) if key.startswith(_OWN) else said
    if key.startswith(_OWN) and sorted(_PLACE.findall(said)) != sorted(_PLACE.findall(own.words)):
        yield "other places for values than in English"
    for character in _SYNTAX:
        if character in plain:
            yield f"has {character}, which the page does not show as it is"
    if not key.endswith("name"):
        # a label may be the same word in two languages
        if said == own.words and (" " in said or not key.startswith(_OWN)):
            yield "not translated"
        for name in dict.fromkeys(_names(key, english, texts)):
            if name not in said:
                yield f"lacks {name}"
    elif own.choices and (width := sum(2 if east_asian_width(c) in "WF" else 1 for c in said)) > LONGEST_LABEL:
        yield f"{width} columns wide: a list's label has room for {LONGEST_LABEL}"


def _numbers(words: str) -> Counter[str]:
    return Counter(_NUMBER.findall(words))


def _names(key: str, english: Mapping[str, Text], texts: Mapping[str, str]) -> Iterator[str]:
    """What a translation must hold: values and names as they are, nodes and inputs as its language calls them."""
    words = english[key].words
    yield from _QUOTED.findall(words)
    words = _QUOTED.sub(" ", words)
    for other, text in english.items():
        if other.endswith(".display_name") and text.words in words:
            yield texts.get(other, text.words)
            words = words.replace(text.words, " ")
    phrases = (choice for text in english.values() for choice in text.choices if " " in choice)
    for phrase in (*english[key].choices, *phrases, *_PRODUCTS):
        if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", words):
            yield phrase
    labels = _labels(key.partition(".")[0], english, texts)
    for word in words.split():
        bare = re.sub(r"'s?$|(?<=[A-Z])s$", "", word.strip(".,;:()'"))
        if "_" in bare and bare in labels:
            yield labels[bare]
        elif _NAME.search(bare) and bare not in _UNITS:
            yield bare


def _labels(node: str, english: Mapping[str, Text], texts: Mapping[str, str]) -> dict[str, str]:
    """Input -> its label in the language; of several nodes with such an input, this one's."""
    found = {}
    for key in sorted(english, key=lambda key: key.startswith(f"{node}.")):
        if match := re.fullmatch(r"\w+\.inputs\.(\w+)\.name", key):
            found[match[1]] = texts.get(key, match[1])
    return found


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, str):
            yield above + name, value
        else:
            yield from _flat(value, f"{above}{name}.")


def _sources() -> dict[str, dict[str, str]]:
    return json.loads(SOURCES.read_text("utf-8"))


# ---- the command -----------------------------------------------------------------------------------------------------


def locales_command(argv: Sequence[str]) -> int:
    """Lists faults, or records renewed translations; returns 1 where there are faults, see also ``exit_status``."""
    parser = argparse.ArgumentParser(
        prog="tasks.py locales", description="List what is wrong with the translations, or record renewed ones."
    )
    parser.add_argument(
        "--renewed",
        nargs="+",
        default=[],
        metavar="KEY",
        help="these translations were made from today's English texts, e.g. 'AITKSampler.inputs.seed.*'",
    )
    parser.add_argument("--language", nargs="+", metavar="CODE", help="of these alone (default: all)")
    arguments, status = parser.parse_args(argv), [0]

    def run() -> None:
        chosen = _chosen(arguments.language)
        _record(chosen, arguments.renewed)
        status[0] = int(any([_list(language) for language in chosen]))

    return exit_status(run) or status[0]


def _chosen(wanted: Sequence[str] | None) -> Sequence[str]:
    known = languages()
    for language in wanted or ():
        if language not in known:
            raise InputError(f"There is no locales/{language}. Languages: {', '.join(known)}.")
    return wanted or known


def _record(chosen: Sequence[str], patterns: Sequence[str]) -> None:
    english, sources = english_texts(), _sources()
    for pattern in patterns:
        keys = [key for key in english if fnmatchcase(key, pattern)]
        if not keys:
            raise InputError(f"No text has the key {pattern}. Run the command without --renewed to see the keys.")
        for key in keys:
            sources.setdefault(key, {}).update(dict.fromkeys(chosen, digest(english[key].words)))
    if patterns:
        # a line for each text, so that a change shows what it renewed
        lines = (f"{json.dumps(key)}: {json.dumps(sources[key], sort_keys=True)}" for key in english if key in sources)
        SOURCES.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def _list(language: str) -> bool:
    """Prints a language's faults; returns whether there are any."""
    english, texts = english_texts(), translated_texts(language)
    faults = find_faults(english, texts, made_from(language))
    for fault in faults:
        print(f"{language} {fault.key}: {fault.what}")
        if fault.key in english:
            print(f"    en: {english[fault.key].words}")
        if fault.key in texts:
            print(f"    {language}: {texts[fault.key]}")
    if not faults:
        print(f"{language}: {len(texts)} texts, all from today's English")
    return bool(faults)
