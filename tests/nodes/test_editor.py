"""What the graph editor asks, over HTTP as ComfyUI's server answers it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from comfyui_aitk.nodes.editor import ANSWERS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.host.comfyui import add_routes
from comfyui_aitk.nodes.sampler import AITKSampler
from comfyui_aitk.pipelines.models import catalogue
from comfyui_aitk.pipelines.pictures.sizes import snap
from comfyui_aitk.pipelines.run.request import SampleRequest, check_request

# the package's name of it is the answer
weights = importlib.import_module("comfyui_aitk.nodes.editor.weights")
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def ask(host):
    """Asks a path with a query; returns status and answer."""

    async def asked(path, query):
        app, routes = web.Application(), web.RouteTableDef()
        add_routes(routes, ANSWERS)
        app.add_routes(routes)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            address = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
            async with ClientSession() as session, session.get(address, params=query) as response:
                return response.status, await response.json()
        finally:
            await runner.cleanup()

    return lambda path, **query: asyncio.run(asked(path, query))


@pytest.fixture
def loras(ask, host, tmp_path):
    """A folder of LoRAs that a test may fill."""
    use_host(PlainHost(tmp_path / "models", host.input, host.output, "cpu"))
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    return folder


def test_models_state_what_the_sampler_would_do(ask):
    status, answer = ask("/aitk/models")
    assert status == 200
    assert list(answer["models"]) == list(catalogue())
    inputs = AITKSampler.INPUT_TYPES()
    known = {*inputs["required"], *inputs["optional"]}
    for model_id, model in answer["models"].items():
        facts = catalogue()[model_id]
        assert set(model["defaults"]) <= known
        assert list(model["recipes"]) == list(facts.recipes)
        for name in model["recipes"]:
            for width, height in model["usual_sizes"]:
                assert not snap(width, height, facts.recipes[name].size, 1 << 14).notes
            # what is said to be refused is, and what is not said is not
            request = SampleRequest(name, "a fox", system_prompt="Draw.")
            if not model["system_prompt"]:
                with pytest.raises(Exception, match="takes no system prompt"):
                    check_request(facts, request)
            else:
                check_request(facts, request)


def test_a_card_tells_what_a_lora_is_and_whether_it_fits(ask, models):
    name = "tiny.safetensors"
    status, card = ask("/aitk/lora", name=name, model="lumina2", weights="tiny")
    assert status == 200
    assert (card["format"], card["ranks"], card["trigger_word"]) == ("LoRA", [4], "t1ny")
    assert (card["trained_for"], card["model"]) == ("Lumina Image 2.0", "Lumina Image 2.0")
    assert card["size"] == (models / "loras" / name).stat().st_size
    assert card["fit"]["verdict"] == "yes"
    # of weights that are not here yet, the file alone tells
    assert ask("/aitk/lora", name=name, model="lumina2")[1]["fit"]["verdict"] == "yes"
    other = ask("/aitk/lora", name=name, model="flux2")[1]["fit"]
    assert other == {"verdict": "no", "words": "It looks like one for Lumina Image 2.0."}
    assert "fit" not in ask("/aitk/lora", name=name)[1]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("lumina2/lora/lokr_full_f32", ("LoKr", [])),
        ("lumina2/lora/dora_f32", ("DoRA", [4])),
        ("zimage/lora/lora_f32", ("LoRA", [4])),
    ],
)
def test_format_and_ranks_are_read_from_the_header(ask, loras, file, expected):
    shutil.copy(GOLDEN / f"{file}.safetensors", loras / "one.safetensors")
    card = ask("/aitk/lora", name="one.safetensors")[1]
    assert (card["format"], card["ranks"]) == expected
    assert card["trained_with"] == "ai-toolkit 0.12.26"


def test_a_digest_is_the_reports(ask, models):
    status, answer = ask("/aitk/lora/digest", name="tiny.safetensors")
    whole = (models / "loras" / "tiny.safetensors").read_bytes()
    assert (status, answer) == (200, {"sha256": hashlib.sha256(whole).hexdigest()})


@pytest.mark.parametrize("path", ["/aitk/lora", "/aitk/lora/digest"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is no name"),
        ("../diffusers/tiny/vae/diffusion_pytorch_model.safetensors", "is refused"),
        ("/etc/passwd", "is refused"),
        ("C:\\x", "is refused"),
        ("gone.safetensors", "is not there"),
    ],
)
def test_names_stay_in_the_loras_folder_and_errors_hold_no_path(ask, path, name, says, models):
    status, answer = ask(path, name=name)
    assert status == 200
    assert list(answer) == ["error"]
    assert says in answer["error"]
    assert str(models.parent) not in answer["error"]


def test_unknown_models_and_files_that_are_no_loras_are_named(ask, loras):
    shutil.copy(GOLDEN / "lumina2/lora/lora_f32.safetensors", loras / "one.safetensors")
    assert "There is no model 'x'" in ask("/aitk/lora", name="one.safetensors", model="x")[1]["error"]
    (loras / "broken.safetensors").write_bytes(b"no header")
    status, answer = ask("/aitk/lora", name="broken.safetensors")
    assert status == 200
    assert "broken.safetensors" in answer["error"]


def test_weights_tell_which_models_they_hold_and_nobody_is_asked_twice(ask, own, monkeypatch):
    (own.folder / "checkpoints" / "other.safetensors").write_bytes(b"no header")
    shutil.copy(GOLDEN / "lumina2" / "lora" / "lora_f32.safetensors", own.folder / "checkpoints" / "lora.safetensors")
    (own.folder / "checkpoints" / "old.ckpt").write_bytes(b"a pickle")
    # a file of a size that nobody released may be any of its class
    flux2 = [name for name in catalogue() if name.startswith("flux2")]
    held = {
        "lumina": ["lumina2"], "lumina.safetensors": ["lumina2"], "klein": ["flux2_klein_4b"],
        "klein.safetensors": flux2, "other.safetensors": [], "lora.safetensors": [],
    }  # fmt: skip
    assert ask("/aitk/weights") == (200, {"weights": held, "more": 0})
    # of files that stay the same nothing is read again
    monkeypatch.setattr(weights, "_models", lambda name: [f"asked for {name}"])
    shutil.copy(own.file("diffusion_models", "klein.safetensors"), own.file("diffusion_models", "lumina.safetensors"))
    again = ask("/aitk/weights")[1]["weights"]
    assert again["lumina.safetensors"] == ["asked for lumina.safetensors"]
    assert [again[name] for name in ("klein.safetensors", "other.safetensors")] == [flux2, []]


def test_many_files_are_told_by_and_by(ask, own, monkeypatch):
    monkeypatch.setattr(weights, "PATIENCE", 0.0)
    files = ["klein.safetensors", "lumina.safetensors"]
    for more in (1, 0, 0):
        answer = ask("/aitk/weights")[1]
        assert answer["more"] == more
        assert [name for name in answer["weights"] if name in files] == files[: 2 - more]


def test_what_the_editor_asks_imports_no_torch(models):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import tasks
tasks.load_pack()
from pathlib import Path
from comfyui_aitk.nodes.editor import ANSWERS
from comfyui_aitk.nodes.host import PlainHost, use_host
use_host(PlainHost(Path({str(models)!r}), Path("."), Path("."), "cpu"))
ANSWERS["/aitk/models"]({{}})
query = {{"name": "tiny.safetensors", "model": "lumina2", "weights": "tiny"}}
assert ANSWERS["/aitk/lora"](query)["fit"]["verdict"] == "yes"
ANSWERS["/aitk/lora/digest"](query)
assert ANSWERS["/aitk/weights"]({{}}) == {{"weights": {{"tiny": ["lumina2"]}}, "more": 0}}
import json
print(json.dumps([name for name in ("torch", "diffusers", "transformers") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
