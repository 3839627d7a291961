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
from comfyui_aitk.nodes.load_model import LoadAITKModel
from comfyui_aitk.nodes.sampler import AITKSampler
from comfyui_aitk.pipelines.engine import file_digests
from comfyui_aitk.pipelines.engine.file_digests import FileDigests
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.models import catalogue, find_model
from comfyui_aitk.pipelines.pictures.sizes import snap
from comfyui_aitk.pipelines.run.request import SampleRequest, check_request
from rendering import COMMIT, put_into_cache
from safetensors.torch import load_file, save_file

# the package's name of it is the answer
weights = importlib.import_module("comfyui_aitk.nodes.editor.weights")
bases = importlib.import_module("comfyui_aitk.nodes.editor.bases")
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
    ("file", "said", "model", "verdict"),
    [
        # AI Toolkit writes one name for all models of these
        ("qwen_image", "qwen_image", "qwen_image_edit_plus:2511", "yes"),
        ("zimage", "zimage", "zimage:turbo", "yes"),
        ("krea2", "krea2", "krea2:o_edit_turbo", "yes"),
        # and one for each of these
        ("flux2", "flux2", "flux2_klein_9b", "maybe"),
        ("zimage", "zimage", "qwen_image", "no"),
        # of a narrow layer the names alone tell
        ("flux2_klein_4b", "", "flux2_klein_9b", "maybe"),
    ],
)
def test_a_name_that_several_models_share_tells_nothing_of_which(ask, loras, file, said, model, verdict):
    tensors = load_file(GOLDEN / file / "lora" / "lora_f32.safetensors")
    # as wide as the released Qwen-Image, and in a block that Mage-Flow has not
    for name in [name for name in tensors if "transformer_blocks.1." in name and "lora_A" in name]:
        own = tensors.pop(name)
        tensors[name.replace("transformer_blocks.1.", "transformer_blocks.40.")] = own.new_ones(own.shape[0], 3072)
    save_file(tensors, loras / "one.safetensors", {"ss_base_model_version": said} if said else None)
    assert ask("/aitk/lora", name="one.safetensors", model=model)[1]["fit"]["verdict"] == verdict


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
    # however slow this machine is
    monkeypatch.setattr(weights, "PATIENCE", 600.0)
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


def test_a_base_is_told_part_by_part_as_the_report_has_it(ask, own):
    status, answer = ask("/aitk/base", model="lumina2", weights="lumina", vae="lumina_ae.safetensors")
    assert status == 200
    pipeline = LoadAITKModel().load("lumina2", "lumina", "float32", vae="lumina_ae.safetensors")
    result = AITKSampler().sample(*pipeline, "a fox", "", 64, 64, 1, 4.0, 42, "reference pipeline")
    report = json.loads(result["ui"]["aitk_report"][0])["model"]
    for part, found in answer["parts"].items():
        told = [(file["name"], file["bytes"], file["sha256"]) for file in found["files"]]
        ran = [(one["name"], one["bytes"], one["sha256"]) for one in report["files"] if part in one["parts"]]
        assert told == ran
        assert found["source"] == report["weights"][part]
    choices = {part: found["choice"] for part, found in answer["parts"].items()}
    assert choices == {"transformer": "lumina", "text_encoder": "lumina", "vae": "lumina_ae.safetensors"}
    assert str(own.folder) not in json.dumps(answer)
    # the weights tell the model; the order of the parts says nothing
    assert ask("/aitk/base", model="auto", weights="lumina", vae="lumina_ae.safetensors") == (status, answer)


def test_a_large_file_is_not_read_whole_for_its_digest(ask, own, host, monkeypatch):
    path = own.file("diffusion_models", "lumina.safetensors")
    use_host(PlainHost(own.folder, host.input, host.output, "cpu", embeddings=own.folder / "known"))
    monkeypatch.setattr(file_digests, "LARGE", 1 << 10)

    def told():
        (part,) = ask("/aitk/base", model="lumina2", weights=path.name)[1]["parts"].values()
        return part["files"][0]

    def train_on():
        own.rewrite("diffusion_models", path.name, lambda found: {name: found[name] * 1.1 for name in found})

    train_on()
    first = told()
    assert (first["bytes"], first["sha256"]) == (path.stat().st_size, None)
    # where somebody read it before, it is known
    whole = FileDigests(lambda: own.folder / "known").of(FileStamp.of(path))
    assert told() == first | {"sha256": whole}
    # the same header and size, and other values
    train_on()
    other = told()
    assert (other["bytes"], other["sha256"]) == (first["bytes"], None)
    assert other["sampled"] != first["sampled"]


def test_a_header_of_another_file_is_told_wherever_its_values_lie(ask, own):
    path = own.file("diffusion_models", "lumina.safetensors")
    first = bases.sampled(FileStamp.of(path))
    own.rewrite("diffusion_models", path.name, lambda tensors: dict(reversed(tensors.items())))
    assert bases.sampled(FileStamp.of(path)) != first


def test_of_a_repository_the_cache_is_asked_and_nothing_is_fetched(ask, hub_in_use, hub_cache, models):
    repository = find_model("lumina2").files.repository
    assert ask("/aitk/base", model="lumina2", weights="default") == (200, {"parts": {}})
    tiny = models / "diffusers" / "tiny"
    files = {file.relative_to(tiny).as_posix(): file for file in tiny.rglob("*") if file.is_file()}
    put_into_cache(hub_cache, repository, files)
    parts = ask("/aitk/base", model="lumina2", weights="default")[1]["parts"]
    folder = ask("/aitk/base", model="lumina2", weights="tiny")[1]["parts"]
    assert {part: found["files"] for part, found in parts.items()} == {
        part: found["files"] for part, found in folder.items()
    }
    assert {found["choice"] for found in parts.values()} == {"default"}
    assert all(found["source"].startswith(f"{repository}@") for found in parts.values())
    assert ask("/aitk/base", model="lumina2", repo_id="owner/other")[1] == {"parts": {}}
    assert not hub_in_use.fetched


def test_what_a_folder_lacks_is_told_of_the_cache_and_by_the_hub_s_own_digest(ask, own, hub_cache, monkeypatch):
    monkeypatch.setattr(file_digests, "LARGE", 0)
    whole = ask("/aitk/base", model="flux2_klein_4b", weights="klein")[1]["parts"]["vae"]
    lacking = own.file("diffusers", "klein") / "ae.safetensors"
    digest = hashlib.sha256(lacking.read_bytes()).hexdigest()
    repository = "ai-toolkit/flux2_vae"
    blob = hub_cache / f"models--{repository.replace('/', '--')}" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    lacking.rename(blob)
    assert "vae" not in ask("/aitk/base", model="flux2_klein_4b", weights="klein")[1]["parts"]
    put_into_cache(hub_cache, repository, {})
    (snapshot := blob.parents[1] / "snapshots" / COMMIT).mkdir(parents=True)
    (snapshot / "ae.safetensors").symlink_to(blob)
    found = ask("/aitk/base", model="flux2_klein_4b", weights="klein")[1]["parts"]["vae"]
    assert found["choice"] == "klein"
    assert found["source"] == f"{repository}@{COMMIT[:12]}/ae.safetensors"
    # what huggingface_hub downloaded is called by its digest, and not read
    assert whole["files"][0]["sha256"] is None
    assert found["files"] == [whole["files"][0] | {"sha256": digest}]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"weights": "gone"}, "is not there"),
        ({"weights": "../tiny"}, "is refused"),
        ({"weights": "tiny", "vae": "/etc/passwd"}, "is refused"),
        ({"weights": "tiny", "model": "x"}, "There is no model 'x'"),
        ({"weights": "default", "repo_id": "../../x"}, "is no Hugging Face repository id"),
    ],
)
def test_a_base_that_is_not_there_is_told_without_a_path(ask, models, query, says):
    status, answer = ask("/aitk/base", **{"model": "lumina2"} | query)
    assert (status, list(answer)) == (200, ["error"])
    assert says in answer["error"]
    assert str(models.parent) not in answer["error"]


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
assert len(ANSWERS["/aitk/base"](query)["parts"]) == 3
assert ANSWERS["/aitk/base"]({{"model": "lumina2"}}) == {{"parts": {{}}}}
assert ANSWERS["/aitk/weights"]({{}}) == {{"weights": {{"tiny": ["lumina2"]}}, "more": 0}}
import json
print(json.dumps([name for name in ("torch", "diffusers", "transformers") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
