"""The editor's page with the pack in it: the published frontend and Chromium, without ComfyUI."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import NAMES, chromium, find_chromium, open_page
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.engine import file_digests
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.pictures.sizes import snap
from editor_server import find_frontend, serving, translations

TEMPLATES = sorted((Path(__file__).resolve().parents[1] / "example_workflows").glob("*.json"))
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Locale": "en"}
# graphs are opened in the place of the one that is there: each further tab makes the page slower
TAB = "app.extensionManager.workflow.activeWorkflow"
SAMPLER, LOADER, LORA, OPTIONS = "AITKSampler", "LoadAITKModel", "ApplyAITKLoRA", "AITKRecipeOptions"
OPTIONS_TEMPLATE = "LoRA of sd-scripts - Lumina Image 2.0"
# what tests ask of the page, by a node's type; node ids are numbers in some frontends and texts in others
TOOLS = """
window.aitkTest = {
  node: (type) => app.graph.nodes.find((node) => node.type === type),
  widget: (type, name) => aitkTest.node(type).widgets.find((widget) => widget.name === name),
  // as the page does when a user chose or typed it
  set(type, name, value) {
    const widget = aitkTest.widget(type, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, aitkTest.node(type));
  },
  panel: (type) => aitkTest.widget(type, "aitk_panel").element,
  // what of the panel is on the screen
  shown: (type) => (aitkTest.panel(type).checkVisibility() ? aitkTest.panel(type).innerText : ""),
  // how many widgets each node has that workflows keep: all but the extension's own
  kept: () => Object.fromEntries(app.graph.nodes.map((node) =>
    [node.id, (node.widgets ?? []).filter((widget) => widget.name !== "aitk_panel").length])),
  // the nodes that are drawn larger than they were saved: they may stand over what is below, and out of their group
  grown: (nodes) => nodes.map(({ id, type, size }) => [type, size, [...app.graph.getNodeById(id).size]])
    .filter(([, saved, drawn]) => drawn.some((side, axis) => side > saved[axis] + 1)),
  // what comes to the page of a run: a line of text, a preview, and in the end the report
  async run(type, report) {
    const nodeId = String(aitkTest.node(type).id);
    const canvas = new OffscreenCanvas(512, 512);
    canvas.getContext("2d").fillRect(0, 0, 512, 512);
    const ids = { nodeId, displayNodeId: nodeId, parentNodeId: nodeId, realNodeId: nodeId, jobId: "1", promptId: "1" };
    app.api.dispatchCustomEvent("b_preview_with_metadata", { blob: await canvas.convertToBlob(), ...ids });
    app.api.dispatchCustomEvent("progress_text", { nodeId, text: "64 x 64, reference pipeline" });
    aitkTest.node(type).onExecuted({ aitk_report: [JSON.stringify(report)] });
  },
  values: () => Object.fromEntries(app.graph.serialize().nodes.map((node) => [node.id, node.widgets_values ?? []])),
}, true
"""

FRONTEND, CHROMIUM = find_frontend(), find_chromium()
pytestmark = [
    pytest.mark.skipif(
        FRONTEND is None, reason="needs ComfyUI's page: pip install comfyui-frontend-package, or set COMFYUI_FRONTEND"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser, one of {', '.join(NAMES)}: apt install chromium"),
]


@pytest.fixture(scope="module")
def own_models(models, tmp_path_factory):
    """The nodes' host on the tiny model; templates ask the user for a LoRA of his own, which is no file's name."""
    folder = shutil.copytree(models, tmp_path_factory.mktemp("page") / "models")
    use_host(PlainHost(folder, folder / "input", folder / "output", "cpu"))
    yield
    use_host(None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(CHROMIUM, tmp_path_factory.mktemp("chromium")) as address:
        yield address


@contextmanager
def started(browser, settings):
    """The page with these settings, when it has started."""
    with serving(FRONTEND, settings) as address, open_page(browser, address) as opened:
        opened.until("window.app?.vueAppReady")
        opened.evaluate(TOOLS)
        show(opened, TEMPLATES[0].stem)
        yield opened


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes 2.0"])
def page(request, own_models, browser):
    with started(browser, SETTINGS | {"Comfy.VueNodes.Enabled": request.param}) as opened:
        drawn_by_vue = opened.evaluate("document.querySelectorAll('.lg-node').length > 0")
        assert drawn_by_vue == request.param
        yield opened
        assert not complaints_of_ours(opened)


def show(page, template):
    """Opens a template, and waits for what the extension makes of it; returns the template."""
    graph = json.loads(TEMPLATES[0].with_name(f"{template}.json").read_text("utf-8"))
    load(page, graph)
    return graph


def load(page, graph):
    # else the pictures of the graph before show on this one's nodes that have the same ids
    page.evaluate("app.clean()")
    page.evaluate(f"app.loadGraphData({json.dumps(graph)}, true, true, {TAB}).then(() => true)")
    if any(node["type"] == SAMPLER for node in graph["nodes"]):
        page.until(f"aitkTest.panel('{SAMPLER}').firstChild.children.length")


def call(page, tool, *given):
    return page.evaluate(f"aitkTest.{tool}(...{json.dumps(given)})")


def value(page, node, name):
    return page.evaluate(f"aitkTest.widget({json.dumps(node)}, {json.dumps(name)}).value")


def choices(page, node, name):
    return page.evaluate(f"aitkTest.widget({json.dumps(node)}, {json.dumps(name)}).options.values")


def wait_for_text(page, node, text):
    page.until(f"aitkTest.shown({json.dumps(node)}).includes({json.dumps(text)})")


def grown(page, graph):
    """The nodes that are drawn larger than the graph has them, once what was put on them stands there."""
    page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done), 150))")
    return call(page, "grown", graph["nodes"])


def complaints_of_ours(page):
    """What the console said of the pack's modules, of what they ask, or by them."""
    return [said for said in page.complaints if "aitk" in said.lower()]


def wait_for_size(page, model, recipe, width, height):
    """Until the sampler says what is rendered of these sides."""
    size = snap(width, height, find_model(model).recipes[recipe].size, 1 << 14)
    asked, rendered = (
        f"{wide} \N{MULTIPLICATION SIGN} {high}" for wide, high in ((width, height), (size.width, size.height))
    )
    text = asked if asked == rendered else f"{asked} → {rendered}"
    page.until(f"aitkTest.shown('{SAMPLER}').split('\\n')[0] === {json.dumps(text)}")


@pytest.mark.parametrize("template", [path.stem for path in TEMPLATES])
def test_a_template_opens_whole_and_keeps_its_values(page, template):
    graph = show(page, template)
    missing = "app.graph.nodes.map((node) => node.type).filter((type) => !(type in LiteGraph.registered_node_types))"
    assert page.evaluate(missing) == []
    assert page.evaluate("app.graph.nodes.length") == len(graph["nodes"])
    opened, kept = call(page, "values"), call(page, "kept")
    for node in graph["nodes"]:
        if node["type"] in NODE_CLASS_MAPPINGS:
            # an input that came later has its default, behind those that were saved
            saved = node.get("widgets_values", [])
            assert opened[str(node["id"])][: len(saved)] == saved
            assert len(opened[str(node["id"])]) == kept[str(node["id"])]
    assert grown(page, graph) == []
    load(page, page.evaluate("app.graph.serialize()"))
    assert call(page, "values") == opened
    assert not complaints_of_ours(page)


def test_what_a_lora_and_a_run_show_has_room_on_its_node(page):
    graph = show(page, "LoRA - Lumina Image 2.0")
    # of a file that nobody has chosen yet nothing is said
    assert call(page, "shown", LORA) == ""
    call(page, "set", LOADER, "weights", "tiny")
    call(page, "set", LORA, "lora_name", "tiny.safetensors")
    wait_for_text(page, LORA, "Trained with")
    report = {"notes": ["[trigger] stays in the prompt as it is: trigger_word is empty"], "size": {"width": 64}}
    page.evaluate(f"aitkTest.run('{SAMPLER}', {json.dumps(report)}).then(() => true)")
    wait_for_text(page, SAMPLER, "[trigger] stays")
    assert grown(page, graph) == []


def test_another_model_brings_its_defaults_recipes_and_sizes_and_leaves_what_was_typed(page):
    show(page, "Text to image - Lumina Image 2.0")
    call(page, "set", SAMPLER, "seed", 7)
    # a side that Lumina's and Z-Image's reference makes smaller, and OmniGen2's does not
    call(page, "set", SAMPLER, "width", 1008)
    wait_for_size(page, "lumina2", "reference pipeline", 1008, 1024)
    for model in ("zimage:turbo", "omnigen2"):
        call(page, "set", LOADER, "model", model)
        facts = find_model(model)
        page.until(f"aitkTest.widget('{SAMPLER}', 'recipe').options.values.length === {len(facts.recipes)}")
        wait_for_size(page, model, "reference pipeline", 1008, 1024)
        assert choices(page, SAMPLER, "recipe") == list(facts.recipes)
        assert value(page, SAMPLER, "steps") == facts.defaults.steps
        assert value(page, SAMPLER, "guidance_scale") == facts.defaults.guidance_scale
        assert (value(page, SAMPLER, "seed"), value(page, SAMPLER, "width")) == (7, 1008)


def test_a_lora_shows_its_card_and_whether_it_fits_the_model(page):
    show(page, "LoRA - Lumina Image 2.0")
    call(page, "set", LOADER, "weights", "tiny")
    call(page, "set", LORA, "lora_name", "tiny.safetensors")
    wait_for_text(page, LORA, "Fits Lumina Image 2.0.")
    wait_for_text(page, LORA, "t1ny")
    wait_for_text(page, LORA, "LoRA, rank 4")
    call(page, "set", LOADER, "weights", "default")
    call(page, "set", LOADER, "model", "flux2")
    wait_for_text(page, LORA, f"Does not fit {find_model('flux2').title}. It looks like one for Lumina Image 2.0.")


def test_weights_that_hold_the_model_come_first_and_another_model_s_are_told(page):
    show(page, "Text to image - Lumina Image 2.0")
    before = choices(page, LOADER, "weights")
    assert before[:2] == ["default", "tiny"]
    call(page, "set", LOADER, "model", "flux2")
    call(page, "set", LOADER, "weights", "tiny")
    wait_for_text(page, LOADER, f"tiny holds Lumina Image 2.0, not {find_model('flux2').title}.")
    assert sorted(choices(page, LOADER, "weights")) == sorted(before)
    page.evaluate("aitkTest.panel('LoadAITKModel').querySelector('button').click()")
    page.until(f"aitkTest.shown('{LOADER}') === ''")
    assert value(page, LOADER, "model") == "lumina2"


def test_a_base_that_is_not_the_graph_s_is_told_until_the_own_one_is_taken(page):
    kept = f"aitkTest.node('{LOADER}').properties.aitk_base"
    show(page, "Text to image - Lumina Image 2.0")
    call(page, "set", LOADER, "weights", "tiny")
    page.until(f"{kept}?.parts.vae?.choice === 'tiny'")
    own = page.evaluate(kept)
    assert call(page, "shown", LOADER) == ""
    # as somebody saved it who has another autoencoder, and a transformer of another training
    graph = page.evaluate("app.graph.serialize()")
    (loader,) = (node for node in graph["nodes"] if node["type"] == LOADER)
    parts = loader["properties"]["aitk_base"]["parts"]
    parts["vae"]["files"][0] = {"bytes": 335_000_000}
    parts["transformer"]["files"][0] |= {"sampled": "0" * 16, "sha256": "0" * 64}
    load(page, graph)
    told = "diffusion_pytorch_model.safetensors: this graph was made with another file"
    wait_for_text(page, LOADER, f"tiny: vae/{told}. That one has 335 MB, and yours has ")
    wait_for_text(page, LOADER, f"tiny: transformer/{told} of the same size, which holds other values.")
    # opening says so, and changes nothing
    assert page.evaluate(kept)["parts"] == parts
    take = f"aitkTest.panel('{LOADER}').querySelector('button').click()"
    page.evaluate(take)
    page.until(f"!aitkTest.shown('{LOADER}').includes('transformer/')")
    assert "vae/" in call(page, "shown", LOADER)
    page.evaluate(take)
    page.until(f"aitkTest.shown('{LOADER}') === ''")
    assert page.evaluate(kept) == own


def test_a_run_s_report_fills_in_the_digest_of_a_file_that_the_page_does_not_have_read(page, monkeypatch):
    monkeypatch.setattr(file_digests, "LARGE", 0)
    kept = f"aitkTest.node('{LOADER}').properties.aitk_base"
    show(page, "Text to image - Lumina Image 2.0")
    call(page, "set", LOADER, "weights", "tiny")
    page.until(f"{kept}?.parts.vae?.choice === 'tiny'")
    (file,) = page.evaluate(kept)["parts"]["vae"]["files"]
    assert "sha256" not in file
    told = {"name": "diffusion_pytorch_model.safetensors", "parts": ["vae"], "bytes": file["bytes"], "sha256": "1" * 64}
    report = json.dumps({"model": {"weights": "tiny", "files": [told]}})
    page.evaluate(f"aitkTest.node('{SAMPLER}').onExecuted({json.dumps({'aitk_report': [report]})}), true")
    page.until(f"{kept}.parts.vae.files[0].sha256 === {json.dumps('1' * 64)}")
    assert call(page, "shown", LOADER) == ""


def test_recipe_options_that_nobody_reads_are_grey_and_stop_no_run_unseen(page):
    show(page, OPTIONS_TEMPLATE)
    option = next(iter(find_model("lumina2").recipes["sd-scripts"].options))
    disabled = f"aitkTest.widget('{OPTIONS}', '{option}').disabled"
    page.until(f"!{disabled}")
    call(page, "set", OPTIONS, option, 0.5)
    call(page, "set", SAMPLER, "recipe", "reference pipeline")
    recipe = "\N{LEFT SINGLE QUOTATION MARK}reference pipeline\N{RIGHT SINGLE QUOTATION MARK}"
    why = f"The recipe {recipe} of Lumina Image 2.0 does not read it."
    wait_for_text(page, OPTIONS, f"{option}: {why} Changed, it stops the run.")
    assert not page.evaluate(disabled)
    page.evaluate(f"aitkTest.panel('{OPTIONS}').querySelector('button').click()")
    page.until(disabled)
    assert page.evaluate(f"aitkTest.widget('{OPTIONS}', '{option}').tooltip") == why
    call(page, "set", SAMPLER, "recipe", "sd-scripts")
    page.until(f"!{disabled}")


def test_the_extension_speaks_the_page_s_language(own_models, browser):
    with started(browser, SETTINGS | {"Comfy.Locale": "zh"}) as opened:
        show(opened, "LoRA - Lumina Image 2.0")
        call(opened, "set", LOADER, "weights", "tiny")
        call(opened, "set", LORA, "lora_name", "tiny.safetensors")
        wait_for_text(opened, LORA, "适合 Lumina Image 2.0。")
        wait_for_text(opened, LORA, "触发词")
        call(opened, "set", SAMPLER, "negative_prompt", "x")
        call(opened, "set", SAMPLER, "guidance_scale", 1)
        call(opened, "set", SAMPLER, "recipe", "trainer preview")
        texts = translations()["zh"]
        names = {
            name: texts["nodeDefs"][SAMPLER]["inputs"][name]["name"] for name in ("negative_prompt", "guidance_scale")
        }
        wait_for_text(opened, SAMPLER, texts["aitk"]["unused"]["scale"].format(scale=1, above=1))
        assert all(name in call(opened, "shown", SAMPLER) for name in names.values())
        wait_for_help(opened, SAMPLER, texts["nodeDefs"][SAMPLER]["display_name"])


def test_a_page_in_a_language_without_help_pages_shows_the_english_ones(own_models, browser):
    with started(browser, SETTINGS | {"Comfy.Locale": "fr"}) as opened:
        show(opened, "LoRA - Lumina Image 2.0")
        for node in (SAMPLER, LOADER, LORA):
            wait_for_help(opened, node, NODE_DISPLAY_NAME_MAPPINGS[node])


def wait_for_help(page, node, title):
    """Opens a node's help in the editor's panel, until a page with this title stands there, with its picture."""
    page.evaluate(f"app.canvas.selectNode(aitkTest.node({json.dumps(node)})), true")
    button = "document.querySelector('[data-testid=\"info-button\"]')"
    page.until(f"{button} && ({button}.click(), true)")
    page.until(f"document.querySelector('.node-help-content h1')?.innerText === {json.dumps(title)}")
    page.until("document.querySelector('.node-help-content img')?.naturalWidth > 0")
    # where a translation is from is not shown
    assert "<!--" not in page.evaluate("document.querySelector('.node-help-content').innerText")
