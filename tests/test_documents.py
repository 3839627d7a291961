"""What README, the help pages and the package's description say of models, recipes, nodes and options is so.

The catalogue and the nodes state these lists; the pages repeat them for people. Tables are found by their heading row.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from itertools import takewhile
from pathlib import Path

import pytest
from comfyui_aitk import WEB_DIRECTORY
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.pipelines.models import DEFAULT_MODEL, catalogue, recipe_options, runtime_options
from comfyui_aitk.pipelines.models.facts import ModelFacts
from comfyui_aitk.pipelines.models.option import Option

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MODELS = list(catalogue().values())
EXAMPLES = {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
OPTIONS = [("AITKRecipeOptions", option) for option in recipe_options()]
OPTIONS += [("AITKRuntimeOptions", option) for option in runtime_options()]


def page(node: str) -> str:
    return (ROOT / WEB_DIRECTORY / "docs" / node / "en.md").read_text("utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose heading row begins so."""
    lines = text.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith(heading)]
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def codes(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def by_title(rows: list[list[str]], column: int = 0) -> dict[str, list[list[str]]]:
    """Title -> the rows that name it, whose cells hold one title or several."""
    found = defaultdict(list)
    for row in rows:
        for title in row[column].split(", "):
            found[title.removesuffix(" (base)")].append(row)
    return found


def repositories(facts: ModelFacts) -> set[str]:
    """Where the parts of a model come from by default."""
    parts = facts.files.parts.values()
    return {facts.files.repository} | {part.repository.id for part in parts if part.repository is not None}


# ---- models ---------------------------------------------------------------------------------------------------------


def test_readme_has_every_model_with_its_id_and_repositories():
    rows = by_title(table(README, "| model |"))
    assert rows.keys() == {facts.title for facts in MODELS}
    for facts in MODELS:
        ((_, arch, weights),) = rows[facts.title]
        assert codes(arch) == [facts.id]
        assert set(codes(weights)) == repositories(facts)


def test_the_loader_s_page_has_every_model_with_its_repositories():
    text = page("LoadAITKModel")
    (about,) = [row for row in table(text, "| Input |") if row[0] == "`model`"]
    assert codes(about[1]) == [*catalogue(), "auto", DEFAULT_MODEL]
    rows = {codes(row[0])[0]: row for row in table(text, "| `model` | What it is |")}
    assert rows.keys() == catalogue().keys()
    for facts in MODELS:
        _, what, loads = rows[facts.id]
        assert what.split(",")[0] == facts.title
        assert repositories(facts) <= set(codes(loads))
        for part in facts.files.parts.values():
            assert not part.comfy_file or f"`{part.comfy_file}`" in text
            assert part.tokenizer is None or f"`{part.tokenizer.id}`" in text


def test_the_sampler_s_page_has_every_model_s_steps_and_guidance():
    rows = by_title(table(page("AITKSampler"), "| Model | `steps` |"))
    found = {title: tuple(float(cell) for cell in row[1:]) for title, (row,) in rows.items()}
    assert found == {facts.title: (facts.defaults.steps, facts.defaults.guidance_scale) for facts in MODELS}
    assert f"The node starts with the values of {catalogue()[DEFAULT_MODEL].title}." in page("AITKSampler")


def test_the_page_of_runtime_options_has_what_every_model_states():
    rows = by_title(table(page("AITKRuntimeOptions"), "| Model | Transformer |"))
    assert {title: row[1:] for title, (row,) in rows.items()} == {
        facts.title: [
            facts.quantization.get("transformer", "none"),
            facts.quantization.get("text_encoder", "none"),
            facts.low_memory_quantization.get("transformer", "none"),
            str(facts.main_blocks),
        ]
        for facts in MODELS
    }
    assert by_title(table(page("AITKRuntimeOptions"), "| Model | `quantize` |")).keys() == {m.title for m in MODELS}


def test_the_page_of_control_images_has_every_model_s_number_of_them():
    rows = by_title(table(page("AITKControlImages"), "| Model | Recipe | Images |"))
    assert rows.keys() == {facts.title for facts in MODELS}
    for facts in MODELS:
        for recipe in facts.recipes.values():
            (said,) = {row[2] for row in rows[facts.title] if row[1] in ("any", f"`{recipe.name}`")} or {"none"}
            number = re.search(r"\d+", said)
            assert (int(number[0]) if number else 0) == recipe.control_images, (facts.id, recipe.name)


def test_the_page_of_loras_has_a_table_for_every_model():
    text = page("ApplyAITKLoRA")
    headings = re.findall(r"^For ([^\n]+?)[:;,](?= |\n)", text.split("## Which files fit", 1)[1], re.MULTILINE)
    named = " ".join(headings)
    for name, family in families().items():
        assert name in named
        for facts in family:
            # the trainer's own spelling
            assert f"`{facts.lora.spellings[0].prefix}<" in text


def families() -> dict[str, list[ModelFacts]]:
    """Models of one class, by what their titles have in common, which is what people call them."""
    by_class = defaultdict(list)
    for facts in MODELS:
        by_class[facts.files.main_class].append(facts)
    return {_common([facts.title for facts in family]): family for family in by_class.values()}


def _common(titles: list[str]) -> str:
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*titles, strict=False))
    return "".join(characters[0] for characters in same).rstrip("- ")


def test_the_package_s_description_and_keywords_name_every_model():
    assert len(families()) > 3
    for name, family in families().items():
        assert len(name) > 5
        assert name in PROJECT["description"]
        for facts in family:
            words = {facts.id, *facts.words.search}
            assert [word for word in PROJECT["keywords"] if word in words or facts.id.startswith(word)], facts.id


def test_the_page_of_training_adapters_has_every_one():
    text = page("AITKTrainingAdapter")
    adapters = {facts.id: facts.training_adapter for facts in MODELS if facts.training_adapter}
    assert adapters
    for model, adapter in adapters.items():
        repository, file = adapter.rsplit("/", 1)
        assert {model, repository, file} <= set(codes(text))


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_the_sampler_s_page_has_every_recipe():
    text = page("AITKSampler")
    (about,) = [row for row in table(text, "| Input |") if row[0] == "`recipe`"]
    for name in {name for facts in MODELS for name in facts.recipes}:
        assert f"`{name}`" in text, name
        assert [said for said in codes(about[1]) if name.startswith(said.removesuffix("..."))], name
    assert f"The default is `{next(iter(MODELS[0].recipes))}`." in about[2]


@pytest.mark.parametrize("facts", [m for m in MODELS if any(r.era for r in m.recipes.values())], ids=lambda m: m.id)
def test_the_sampler_s_page_has_every_era(facts):
    rows = {codes(row[0])[0]: row for row in table(page("AITKSampler"), "| Recipe | Checkouts")}
    eras = {name: recipe.era for name, recipe in facts.recipes.items() if recipe.era is not None}
    assert list(rows) == list(eras)
    for name, era in eras.items():
        when = f"from {era.first}" if era.last is None else f"{era.first} to {era.last}"
        assert rows[name][1:3] == [when, era.version]


# ---- nodes, options, examples ---------------------------------------------------------------------------------------


def test_readme_has_every_node_and_each_has_a_page():
    assert sorted(row[0] for row in table(README, "| node |")) == sorted(NODE_DISPLAY_NAME_MAPPINGS.values())
    for name in NODE_CLASS_MAPPINGS:
        assert page(name).startswith(f"# {NODE_DISPLAY_NAME_MAPPINGS[name]}\n")
    folder = ROOT / WEB_DIRECTORY / "docs"
    assert {path.name for path in folder.iterdir()} == NODE_CLASS_MAPPINGS.keys(), "a page without a node"


@pytest.mark.parametrize(("node", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_each_option_is_in_its_node_s_page(node: str, option: Option):
    (row,) = [row for row in table(page(node), "| Input |") if codes(row[0]) == [option.name]]
    assert row[1] == values(option)
    assert ("(optional)" in row[0]) == (not option.required)


def values(option: Option) -> str:
    """How a page writes what an option takes."""
    if option.choices:
        return f"{', '.join(f'`{choice}`' for choice in option.choices)}; default `{option.default}`"
    if isinstance(option.default, bool):
        return f"off, on; default {'on' if option.default else 'off'}"
    return f"{option.low:g} to {option.high:g}; default {option.default}"


def test_readme_has_every_example():
    named = []
    for group, models, _ in table(README, "| workflow |"):
        (name,) = codes(group)
        named += [f"{name} - {model}" for model in models.split(", ")] if models else [name]
    assert sorted(named) == sorted(EXAMPLES)


# ---- what stands around them ----------------------------------------------------------------------------------------


def test_the_changelog_has_the_package_s_version_and_room_for_the_next():
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == PROJECT["version"]
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", day) for _, day in headings[1:])


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_linked_files_are_there(name):
    links = re.findall(r"\]\((?!https:)([^)]+)\)", (ROOT / name).read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).is_file()] == []
