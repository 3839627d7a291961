"""What README, the help pages, the pages under docs/ and the package's description say of models, recipes, nodes and
options is so.

The catalogue and the nodes state these lists; the pages repeat them for people. Tables are found by their heading row,
and the inputs and outputs of a node in the lists of its help page, which is read in a panel 282 pixels wide.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import yaml
from comfyui_aitk import WEB_DIRECTORY
from comfyui_aitk.headless.help_pictures import NAME, SCHEMES, WIDTH, Box, draw
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.pipelines.models import DEFAULT_MODEL, catalogue, recipe_options, runtime_options
from comfyui_aitk.pipelines.models.facts import ModelFacts
from comfyui_aitk.pipelines.models.option import Option
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, COMFY = SETTINGS["project"], SETTINGS["tool"]["comfy"]
MODELS = list(catalogue().values())
EXAMPLES = {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
OPTIONS = [("AITKRecipeOptions", option) for option in recipe_options()]
OPTIONS += [("AITKRuntimeOptions", option) for option in runtime_options()]
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN"}  # ComfyUI's types that are typed in, not wired
HELP_LENGTH = 3500  # characters; longer ones are not read
LONGEST_CODE = 29  # characters without a place to break the line; the classic editor cuts longer ones off
SITE = PROJECT["urls"]["Repository"] + "/blob/main/"


def page(node: str) -> str:
    return (ROOT / WEB_DIRECTORY / "docs" / f"{node}.md").read_text("utf-8")


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def items(text: str) -> dict[str, str]:
    """Name -> what is said of it, in a list whose items begin with one name or several, in backticks."""
    found = {}
    for item in re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE):
        names, _, about = re.sub(r"\s+", " ", item).partition(": ")
        for name in codes(names):
            assert name not in found, name
            found[name] = ("(optional) " if "(optional)" in names else "") + about
    return found


def inputs(node: str) -> dict:
    declared = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


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


def test_readme_has_every_model_with_its_id_and_what_was_proved():
    rows = by_title(table(README, "| model |"))
    assert rows.keys() == {facts.title for facts in MODELS}
    for facts in MODELS:
        ((_, arch, equal, proof),) = rows[facts.title]
        assert codes(arch) == [facts.id]
        assert equal
        assert proof


def test_the_loader_s_page_has_every_model_and_that_of_files_its_repositories():
    assert items(section(page("LoadAITKModel"), "Models")).keys() == catalogue().keys()
    text = document("files.md")
    rows = {codes(row[0])[0]: row for row in table(text, "| `model` | What it is |")}
    assert rows.keys() == catalogue().keys()
    for facts in MODELS:
        assert items(section(page("LoadAITKModel"), "Models"))[facts.id].split(",")[0] == facts.title
        _, what, loads = rows[facts.id]
        assert what.split(",")[0] == facts.title
        assert repositories(facts) <= set(codes(loads))
        for part in facts.files.parts.values():
            assert not part.comfy_file or f"`{part.comfy_file}`" in text
            assert part.tokenizer is None or f"`{part.tokenizer.id}`" in text


def test_the_page_of_recipes_has_every_model_s_steps_and_guidance():
    text = document("recipes.md")
    rows = by_title(table(text, "| Model | `steps` |"))
    found = {title: tuple(float(cell) for cell in row[1:]) for title, (row,) in rows.items()}
    assert found == {facts.title: (facts.defaults.steps, facts.defaults.guidance_scale) for facts in MODELS}
    assert f"The node starts with the values of {catalogue()[DEFAULT_MODEL].title}." in text


def test_the_page_of_memory_has_what_every_model_states():
    rows = by_title(table(document("memory.md"), "| Model | Transformer |"))
    assert {title: row[1:] for title, (row,) in rows.items()} == {
        facts.title: [
            facts.quantization.get("transformer", "none"),
            facts.quantization.get("text_encoder", "none"),
            facts.low_memory_quantization.get("transformer", "none"),
            str(facts.main_blocks),
        ]
        for facts in MODELS
    }
    assert by_title(table(document("parity.md"), "| Model | `quantize` |")).keys() == {m.title for m in MODELS}


def test_the_page_of_control_images_has_every_model_s_number_of_them():
    rows = by_title(table(page("AITKControlImages"), "| Model | Images |"))
    assert rows.keys() == {facts.title for facts in MODELS}
    for facts in MODELS:
        ((_, said),) = rows[facts.title]
        taken, every = dict(re.findall(r"`([^`]+)` (\d+)", said)), re.fullmatch(r"(\d+) in all", said)
        assert taken or every or said == "none"
        for recipe in facts.recipes.values():
            count = every[1] if every else taken.get(recipe.name, 0)
            assert int(count) == recipe.control_images, (facts.id, recipe.name)


def test_the_page_of_formats_has_a_table_for_every_model():
    text = document("loras.md")
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
        # in pieces: the whole is wider than the panel
        assert {model, *repository.split("/")} <= set(codes(text))
        assert {model, repository, file} <= set(codes(document("parity.md")))


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_the_sampler_s_page_and_that_of_recipes_have_every_recipe():
    said = codes(items(section(page("AITKSampler"), "Inputs"))["recipe"])
    for name in {name for facts in MODELS for name in facts.recipes}:
        assert f"`{name}`" in document("recipes.md"), name
        assert [word for word in said if name.startswith(word.removesuffix("..."))], name


@pytest.mark.parametrize("facts", [m for m in MODELS if any(r.era for r in m.recipes.values())], ids=lambda m: m.id)
def test_the_page_of_recipes_has_every_era(facts):
    own = by_title(table(document("recipes.md"), "| Models | Recipe | Checkouts"))[facts.title]
    rows = {codes(row[1])[0]: row for row in own}
    eras = {name: recipe.era for name, recipe in facts.recipes.items() if recipe.era is not None}
    assert list(rows) == list(eras)
    for name, era in eras.items():
        when = f"from {era.first}" if era.last is None else f"{era.first} to {era.last}"
        assert rows[name][2:4] == [when, era.version]


@pytest.mark.parametrize("node", ["AITKSampler", "ApplyAITKLoRA"])
def test_who_wants_the_trainer_s_samples_is_told_how_before_anything_else(node):
    before = page(node).split("\n## ", 1)[0]
    assert "`trainer preview`" in before
    assert "AITK Training Job" in before


def test_readme_says_whose_picture_each_recipe_is():
    said = [codes(row[0])[0].removesuffix(" ...") for row in table(README, "| *render as* |")]
    for name in {name for facts in MODELS for name in facts.recipes}:
        assert [one for one in said if name == one or name.startswith(f"{one} ")], name
    assert said[0] == next(iter(MODELS[0].recipes)), "the default"


# ---- nodes, options, examples ---------------------------------------------------------------------------------------


def test_the_page_of_nodes_has_every_one_and_each_has_a_page():
    assert sorted(row[0] for row in table(document("nodes.md"), "| node |")) == sorted(
        NODE_DISPLAY_NAME_MAPPINGS.values()
    )
    for name in NODE_CLASS_MAPPINGS:
        assert page(name).startswith(f"# {NODE_DISPLAY_NAME_MAPPINGS[name]}\n")
    # the editor asks for NAME/LANGUAGE.md, and then for NAME.md: English is what every other language sees too
    folder = ROOT / WEB_DIRECTORY / "docs"
    assert {path.stem for path in folder.glob("*.md")} == NODE_CLASS_MAPPINGS.keys(), "a page without a node"
    assert {path.parent.name for path in folder.glob("*/*")} == NODE_CLASS_MAPPINGS.keys(), "a folder without a node"
    assert not list(folder.glob("*/en.md")), "two places of the English page"


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)
def test_a_help_page_names_every_input_and_output(host, node):
    said = items(section(page(node), "Inputs"))
    assert said.keys() == inputs(node).keys()
    optional = NODE_CLASS_MAPPINGS[node].INPUT_TYPES().get("optional", {})
    for name, (kind, about) in inputs(node).items():
        is_socket = about.get("forceInput") or (isinstance(kind, str) and kind not in WIDGETS)
        assert said[name].startswith("(optional)") == bool(is_socket and name in optional), name
        if about.get("default", "") != "":
            assert re.search(rf"default {re.escape(shown_default(about['default']))}(?![\w.]*\w)", said[name]), name
    outputs = getattr(NODE_CLASS_MAPPINGS[node], "RETURN_NAMES", ())
    if outputs:
        assert list(items(section(page(node), "Outputs"))) == list(outputs)


def shown_default(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, int | float) else f"`{default}`"


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)
def test_a_help_page_fits_the_panel(node):
    text = page(node)
    assert len(text) < HELP_LENGTH
    assert text.index("\n## What to do\n") == text.index("\n## ")
    for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert row.count("|") == 3, f"more than two columns: {row}"
    for code in codes(text):
        assert max(map(len, re.split(r"[- ]", code))) <= LONGEST_CODE, code
    # the page's links leave the editor; of pictures the editor takes the path from the folder of all help pages
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", text) == [f"{node}/{NAME}"]
    path = ROOT / WEB_DIRECTORY / "docs" / node / NAME
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.width == WIDTH


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)
def test_a_page_s_picture_is_what_its_scheme_draws(node):
    drawn = np.asarray(draw(node).convert("RGB"), float)
    with Image.open(ROOT / WEB_DIRECTORY / "docs" / node / NAME) as picture:
        saved = np.asarray(picture.convert("RGB"), float)
    # the edges of letters differ between versions of FreeType; one letter more in a row moves the mean by 0.24 to 1.07
    assert drawn.shape == saved.shape
    assert abs(drawn - saved).mean() < 0.2


def test_schemes_name_widgets_that_nodes_have(host):
    assert SCHEMES.keys() == NODE_CLASS_MAPPINGS.keys()
    ids = {title: node for node, title in NODE_DISPLAY_NAME_MAPPINGS.items()}
    for box in (part for parts in SCHEMES.values() for part in parts if isinstance(part, Box) and part.title in ids):
        labels = {
            label for name, (_, about) in inputs(ids[box.title]).items() for label in (name, about.get("display_name"))
        }
        for row in box.rows:
            assert set(row.removeprefix("*").partition(": ")[0].split(", ")) <= labels, row


@pytest.mark.parametrize(("node", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_each_option_is_in_its_node_s_page_with_its_values(node: str, option: Option):
    about = items(section(page(node), "Inputs"))[option.name]
    if option.choices:
        assert codes(about)[: len(option.choices)] == list(option.choices)
    elif isinstance(option.default, bool):
        assert "off, on;" in about
    else:
        assert f"{option.low:g} to {option.high:g};" in about


def test_the_page_of_nodes_has_every_example():
    named = []
    for group, models, _ in table(document("nodes.md"), "| workflow |"):
        (name,) = codes(group)
        named += [f"{name} - {model}" for model in models.split(", ")] if models else [name]
    assert sorted(named) == sorted(EXAMPLES)


def test_the_templates_that_readme_names_render_the_trainer_s_preview():
    """They lead a person who wants their samples there in one step."""
    named = "AI Toolkit samples - "
    assert f"{named}..." in codes(section(README, "Your samples, in one step"))
    files = [name for name in EXAMPLES if name.startswith(named)]
    assert len(files) == 13
    for name in files:
        document = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
        (sampler,) = [node for node in document["nodes"] if node["type"] == "AITKSampler"]
        assert "trainer preview" in sampler["widgets_values"], name


# ---- what stands around them ----------------------------------------------------------------------------------------


def test_the_changelog_has_the_package_s_version_and_room_for_the_next():
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == PROJECT["version"]
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", day) for _, day in headings[1:])


PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
HELP = [f"{WEB_DIRECTORY.removeprefix('./')}/docs/{node}.md" for node in NODE_CLASS_MAPPINGS]


@pytest.mark.parametrize("name", [*PAGES, *HELP])
def test_linked_files_and_their_headings_are_there(name):
    page = ROOT / name
    for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", page.read_text("utf-8")):
        # a relative link of a help page would be looked for below the editor's own address
        assert name not in HELP or link.startswith(SITE), link
        if link.startswith("https:") and not link.startswith(SITE):
            continue
        file, _, heading = link.removeprefix(SITE).partition("#")
        linked = (ROOT if link.startswith(SITE) else page.parent) / file if file else page
        assert linked.is_file(), link
        assert not heading or heading in anchors(linked.read_text("utf-8")), link


def anchors(text: str) -> list[str]:
    """A page's headings, as GitHub makes addresses of them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_linked_from_readme_or_from_help():
    texts = [README, *map(page, NODE_CLASS_MAPPINGS)]
    linked = {name for text in texts for name in re.findall(r"/?(docs/[\w-]+\.md)", text)}
    assert [name for name in PAGES if name.startswith("docs/") and name not in linked] == []


# ---- what the registry gets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "ratio"), [("Icon", 1), ("Banner", 21 / 9)])
def test_the_registry_s_pictures_are_in_the_repository(key, ratio):
    """It asks for a square icon of at most 400 pixels, and a banner of 21:9."""
    base = PROJECT["urls"]["Repository"].replace("https://github.com/", "https://raw.githubusercontent.com/")
    assert COMFY[key].startswith(f"{base}/main/")
    with Image.open(ROOT / COMFY[key].removeprefix(f"{base}/main/")) as picture:
        width, height = picture.size
    assert width == pytest.approx(height * ratio)
    assert key != "Icon" or width <= 400


def test_what_the_archive_leaves_out_is_there_and_nothing_of_it_runs_in_comfyui():
    lines = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    left_out = [line for line in lines if line and not line.startswith("#")]
    assert "tests/" in left_out
    assert [name for name in left_out if not (ROOT / name).exists()] == []
    kept = {"__init__.py", "nodes/", "pipelines/", "web/", "example_workflows/", "requirements.txt", "pyproject.toml"}
    assert kept.isdisjoint(left_out)


def test_the_release_reads_only_and_runs_what_was_looked_at():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"].values()
    assert not any("permissions" in job for job in jobs)
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert any(name.startswith("Comfy-Org/publish-node-action@") for name in used)
    # a tag can be moved to another commit, which would get the registry's token
    assert [name for name in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name)] == []
