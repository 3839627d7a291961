"""Asking the engine: what is sent, what is kept, and what becomes of an engine that fails in any way."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import OracleError
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.observer import SILENT, SilentObserver
from comfyui_aitk.pipelines.oracle.access import Token, parse_address
from comfyui_aitk.pipelines.oracle.connection import Connection
from comfyui_aitk.pipelines.oracle.consult import Witness, consult
from comfyui_aitk.pipelines.oracle.drawing import draw
from comfyui_aitk.pipelines.oracle.request import model_of
from comfyui_aitk.pipelines.replay.cell import Place
from comfyui_aitk.pipelines.replay.control import ControlFolders
from comfyui_aitk.pipelines.replay.selection import select
from comfyui_aitk.pipelines.replay.store import CellStore
from engine_server import TOKEN, EngineServer, entry, running
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

JOBS = Path(__file__).parents[2] / "golden" / "jobs"
BASE, LORA = Place(0, 0), Place(250, 0)


def picture(_: object = None) -> bytes:
    """A file as the engine may write it: with a text of its own, even its token."""
    file, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("command", f"engine --token {TOKEN}")
    Image.new("RGB", (64, 64), (10, 20, 30)).save(file, "PNG", pnginfo=notes)
    return file.getvalue()


@pytest.fixture
def server():
    with running(picture) as engine:
        yield engine


def ask(
    server: EngineServer, store: Path, name: str = "lumina2_png", token: str = TOKEN, observer: SilentObserver = SILENT,
    job=None, **chosen: str,
) -> dict[Place, Witness]:  # fmt: skip
    job = job or open_job(JOBS / name)
    selection = select(job, **({"checkpoints": "0,250", "samples": "0"} | chosen))
    connection = Connection(parse_address(server.address), Token(token), observer)
    folders = ControlFolders(job.folder, store)
    recipes = dict.fromkeys((one.step for one in selection.checkpoints), ("trainer preview",))
    return consult(job, selection, recipes, folders, connection, CellStore(store), observer, 1.0)


def test_a_cell_is_asked_for_as_the_job_has_it(server, tmp_path):
    found = ask(server, tmp_path)
    base, lora = server.bodies
    quantisation = {"quantize": False, "qtype": "qfloat8", "quantize_te": False, "qtype_te": "qfloat8"}
    assert base["model"].items() >= {"arch": "lumina2", "name_or_path": "tiny-lumina2", **quantisation}.items()
    assert base["sample"] == {
        "prompt": "f0xst, a photo of a red fox in the snow, morning light", "negative_prompt": "", "width": 64,
        "height": 64, "num_inference_steps": 4, "guidance_scale": 4.0, "seed": 42, "output_ext": "png",
    }  # fmt: skip
    assert "loras" not in base["model"]
    (given,) = lora["model"]["loras"]
    assert (given["strength"], lora["model"]["lora_mode"]) == (1.0, "hook")
    assert Path(given["path"]).samefile(JOBS / "lumina2_png" / "fox_style_v1_000000250.safetensors")
    assert [one.error for one in found.values()] == ["", ""]
    assert [[limit.name for limit in found[place].limits] for place in (BASE, LORA)] == [["dtype"], ["lora", "dtype"]]
    # an engine is asked who it is before it gets the token
    assert server.seen[:2] == [("GET", "/health", False), ("GET", "/models", True)]


def test_what_was_drawn_is_not_drawn_again(server, tmp_path):
    ask(server, tmp_path, strengths="1.0,0.5")
    # the base is one picture at both strengths
    assert len(server.bodies) == 3
    again = ask(server, tmp_path, strengths="1.0,0.5")
    assert len(server.bodies) == 3
    assert all(one.found for one in again.values())
    # with another registry, what fills the gaps of a request is not the same
    server.archs = [entry("lumina2", model={"quantize": False})]
    ask(server, tmp_path)
    assert len(server.bodies) == 5


def test_a_lora_is_known_by_its_content(server, tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    for file in (JOBS / "lumina2_png").glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    ask(server, tmp_path / "store", job=open_job(folder), checkpoints="250")
    other = (folder / "fox_style_v1_000000500.safetensors").read_bytes()
    (folder / "fox_style_v1_000000250.safetensors").write_bytes(other)
    ask(server, tmp_path / "store", job=open_job(folder), checkpoints="250")
    assert len(server.bodies) == 2


def test_control_images_are_sent_once_and_named_in_order(server, tmp_path):
    ask(server, tmp_path, "flux2_control", samples="0,1")
    folder = JOBS / "flux2_control" / "control_images"
    assert sorted(server.assets.values()) == sorted((folder / f"ctrl_{name}.png").read_bytes() for name in "ab")
    assert [path for _, path, _ in server.seen].count("/assets") == 2
    by_content = {content: f"/engine/assets/{name}" for name, content in server.assets.items()}
    a, b = (by_content[(folder / f"ctrl_{name}.png").read_bytes()] for name in "ab")
    images = [{key: one for key, one in body["sample"].items() if "ctrl" in key} for body in server.bodies]
    assert images == [{"ctrl_img": a, "ctrl_img_2": b}, {"ctrl_img": b}] * 2
    assert [body["model"].get("loras", [{}])[0].get("strength") for body in server.bodies] == [None, None, 1.0, 0.5]


def test_quantisation_and_the_base_are_those_of_the_training():
    job = open_job(JOBS / "lumina2_te_qfloat8")
    assert model_of(job.model, "0.13.5")["quantize_te"] is True
    assert "use_comfy_weights" not in model_of(job.model, "0.13.5").get("model_kwargs", {})
    # before 0.13 no file of ComfyUI's stood in for a repository
    assert model_of(job.model, "0.12.26")["model_kwargs"]["use_comfy_weights"] is False
    # and the encoder may have had the transformer's type
    encoder = replace(job.model, quantization={"encoder": "uint4"})
    assert model_of(encoder, "")["qtype_te"] == "uint4"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["layer.hada_w1_a", "layer.hada_w1_b", "layer.alpha"], "is a LoHa"),
        (["layer.lora_A.weight", "layer.lora_B.weight", "layer.dora_scale"], "is a DoRA"),
        (["layer.oft_blocks"], "layer.oft_blocks', which the engine is not known to take"),
    ],
)
def test_a_lora_that_the_engine_would_take_by_halves_is_not_sent(server, tmp_path, keys, words):
    (tmp_path / "job").mkdir()
    for file in (JOBS / "lumina2_png").glob("*.yaml"):
        (tmp_path / "job" / file.name).write_bytes(file.read_bytes())
    save_file(
        {f"diffusion_model.{key}": torch.zeros(2, 2) for key in keys},
        tmp_path / "job" / "fox_style_v1_000000250.safetensors",
    )
    job = open_job(tmp_path / "job")
    found = ask(server, tmp_path / "store", job=job, checkpoints="250")
    assert words in found[LORA].error
    assert not server.bodies


def _dump(found: dict[Place, Witness], folder: Path) -> str:
    """Everything that a consultation leaves behind, as text."""
    kept = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    return repr(found) + json.dumps([dict(one.record) for one in found.values()]) + "".join(kept)


def _fail(**how: object):
    return lambda server: [setattr(server.failing, name, value) for name, value in how.items()]


def _set(**how: object):
    return lambda server: [setattr(server, name, value) for name, value in how.items()]


ONE, ALL = 1, 2  # how many requests reach the engine
FAILURES = {
    "hangs": (_fail(hangs=True), "sent nothing for 1 seconds", ONE),
    "hangs while it draws": (_fail(hangs_at_progress=True), "sent nothing for 1 seconds", ONE),
    "closes within a frame": (_fail(cut_after=300), "ends before it is whole|ends within a frame", ALL),
    "closes within a payload": (_fail(cut_after=100_000), "ends before it is whole|ends within a frame", ALL),
    "garbage for frames": (_fail(garbage=b"hello, this is no stream"), "no stream of frames", ALL),
    "a huge header": (_fail(garbage=struct.pack("<I", 2**32 - 1)), "a frame's header of 4,294,967,295 bytes", ALL),
    "a huge payload": (
        _fail(garbage=struct.pack("<I", 2) + b"{}" + struct.pack("<Q", 2**63)),
        "a frame's payload of 9,223,372,036,854,775,808 bytes",
        ALL,
    ),
    "no JSON": (_fail(garbage=struct.pack("<I", 2) + b"[]" + bytes(8)), "no JSON object", ALL),
    "no type": (_fail(garbage=struct.pack("<I", 2) + b"{}" + bytes(8)), "without a type", ALL),
    "an empty stream": (_fail(garbage=b""), "without a picture and without an error", ALL),
    "no HTTP": (_fail(raw=f"{TOKEN} is what you sent\r\n\r\n".encode()), "does not speak HTTP", ALL),
    "an error frame": (
        _fail(error=f"CUDA out of memory\x1b[31m for {TOKEN}"),
        r"The engine failed: 'CUDA out of memory\N{REPLACEMENT CHARACTER}\[31m for \[token\]'\.",
        ALL,
    ),
    "HTTP 500": (
        _fail(refusal=(500, json.dumps({"error": f"no such file {TOKEN}"}).encode())),
        r"answers /generate with HTTP 500: 'no such file \[token\]'\.",
        ALL,
    ),
    "HTTP 400 in other words": (_fail(refusal=(400, f"bad {TOKEN}".encode())), r"HTTP 400: 'bad \[token\]'", ALL),
    "another architecture": (
        _set(archs=[entry("sdxl"), entry(TOKEN)]),
        r"does not know the job's architecture 'lumina2'. It has 2: \[token\], sdxl",
        0,
    ),
    "a model of sound": (_set(archs=[entry("lumina2", modality="audio")]), "draws no pictures with 'lumina2'", 0),
    "another kind of list": (_set(archs={"lumina2": {}}), "lists no architectures in the way of the states from", 0),
    "no picture": (_set(draw=lambda body: f"GIF {TOKEN}".encode()), "no picture that Pillow can read", ALL),
    "another seed": (_set(result={"seed": 7}), "drew seed 7, and 42 was sent", ALL),
    "a path out of its folder": (_set(result={"relpath": "../../etc/passwd"}), "outside of its own folder", ALL),
    "a path of a wrong type": (_set(result={"relpath": 7}), "does not say where its picture is", ALL),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_engine_costs_its_own_picture_and_tells_no_token(failure, server, tmp_path):
    fail, words, requests = FAILURES[failure]
    fail(server)
    found = ask(server, tmp_path)
    assert all(one.picture is None for one in found.values())
    assert re.search(words, found[BASE].error), found[BASE].error
    assert re.search(words, found[LORA].error), found[LORA].error
    assert len(server.bodies) == requests
    assert TOKEN not in _dump(found, tmp_path)
    if requests == ONE:
        assert found[LORA].error.startswith("Not asked, after this at step 0, sample 0:")


@pytest.mark.parametrize("fail", [_fail(hangs_at_progress=True), _fail(cut_after=100_000)])
def test_a_picture_that_is_given_up_is_cancelled(fail, server, tmp_path):
    fail(server)
    ask(server, tmp_path, checkpoints="0")
    assert server.cancelled == ["req1"]


def test_a_picture_that_came_or_failed_is_not_cancelled(server, tmp_path):
    ask(server, tmp_path)
    server.failing.error = "no"
    ask(server, tmp_path, samples="1")
    assert server.cancelled == []


class Interrupting(SilentObserver):
    """Cancel is pressed as soon as the engine is at its first step."""

    def __init__(self) -> None:
        self.pressed = False
        self.said: list[str] = []

    def progress(self, text: str) -> None:
        self.said.append(text)
        self.pressed = "1 of 2 steps" in text

    def check(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt


def test_an_interruption_stops_the_engine_too(server, tmp_path):
    server.failing.hangs_at_progress = True
    observer = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        ask(server, tmp_path, observer=observer)
    assert server.cancelled == ["req1"]
    assert observer.said == ["the engine, step 0, sample 0: loading", "the engine, step 0, sample 0: 1 of 2 steps"]


def test_a_wrong_token_is_told_and_shown_to_nobody(server, tmp_path):
    wrong = "f" * 32
    found = ask(server, tmp_path, token=wrong)
    assert all("refuses the token" in one.error for one in found.values())
    assert wrong not in _dump(found, tmp_path)
    # the page of health is asked without it
    assert server.seen == [("GET", "/health", False), ("GET", "/models", True)]


def test_what_is_no_engine_gets_no_token(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = Connection(parse_address(f"http://127.0.0.1:{listening.getsockname()[1]}"), Token(TOKEN), SILENT)
        job = open_job(JOBS / "lumina2_png")
        heard: list[bytes] = []

        def serve() -> None:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
            talk, _ = listening.accept()
            with talk:
                heard.append(talk.recv(65536))
                talk.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        folders = ControlFolders(job.folder, tmp_path)
        found = consult(job, select(job, "0", "0"), {}, folders, engine, CellStore(tmp_path), SILENT, 1.0)
    assert "not as AI Toolkit's engine does" in found[BASE].error
    assert TOKEN.encode() not in b"".join(heard)


def test_no_engine_is_told_and_what_it_drew_before_stays(server, tmp_path):
    ask(server, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job = open_job(JOBS / "lumina2_png")
    engine = Connection(parse_address(f"http://127.0.0.1:{port}"), Token(TOKEN), SILENT)
    folders = ControlFolders(job.folder, tmp_path)
    selection = select(job, "0,250", "0,1")
    found = consult(job, selection, {}, folders, engine, CellStore(tmp_path), SILENT, 1.0)
    assert [one.picture is not None for one in found.values()] == [True, False, True, False]
    assert f"at http://127.0.0.1:{port} cannot be reached" in found[Place(0, 1)].error


@pytest.mark.parametrize("how", [{"raw": f"{TOKEN}\r\n\r\n".encode()}, {"refusal": (500, TOKEN.encode())}])
def test_a_traceback_has_no_token(server, how):
    _fail(**how)(server)
    engine = Connection(parse_address(server.address), Token(TOKEN), SILENT)
    with pytest.raises(OracleError) as raised:
        draw(engine, {"model": {}, "sample": {}}, SILENT, "here", 1.0)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


def test_a_picture_is_kept_without_what_the_engine_wrote_into_its_file(server, tmp_path):
    server.start = {"echo": TOKEN, "model": {"dtype": "bf16", "qtype": TOKEN, "quantize": True, "secret": TOKEN}}
    found = ask(server, tmp_path)
    assert all(one.picture is not None for one in found.values())
    assert TOKEN not in _dump(found, tmp_path)


def test_another_state_of_the_engine_is_told(server, tmp_path):
    server.later = [{"type": "thought", "text": "hm"}]
    server.start = {"model": None}
    server.result = {"relpath": None}
    server.archs = [entry("lumina2", license="mit")]
    found = ask(server, tmp_path)
    assert found[LORA].error == ""
    told = " ".join(found[BASE].record["not_understood"])
    for words in ("of type 'thought'", "'license'", "no relpath", "does not say which model it resolved"):
        assert words in told


def test_an_engine_that_does_not_tell_of_the_lora_is_not_believed(server, tmp_path):
    server.start = {"loras": None}
    found = ask(server, tmp_path)
    assert found[BASE].error == ""
    assert "does not say that it applied the LoRA" in found[LORA].error


@pytest.mark.parametrize(
    ("start", "limit"),
    [
        ({"model": {"dtype": "bf16", "quantize": True, "qtype": "convrot8"}}, "quantize True for False"),
        ({"model": {"dtype": "float16"}}, "it computes in float16, and the job in float32"),
        ({"lora_mode": "merge"}, "in mode 'merge', where the weights are rounded at random"),
    ],
)
def test_what_the_engine_did_otherwise_is_a_limit(server, tmp_path, start, limit):
    server.start = start
    found = ask(server, tmp_path, checkpoints="250")
    assert limit in "; ".join(one.words for one in found[LORA].limits)


def test_an_engine_loads_the_base_without_what_earlier_rounds_left(server, tmp_path):
    found = ask(server, tmp_path, checkpoints="250,500")
    limits = [[limit.name for limit in found[Place(step, 0)].limits] for step in (250, 500)]
    assert limits == [["lora", "dtype"], ["lora", "earlier_rounds", "dtype"]]


def test_an_engine_in_the_jobs_own_way_has_no_limit_without_a_lora(server, tmp_path):
    server.start = {"model": {"dtype": "torch.float32", "quantize": False, "qtype": "whatever"}}
    assert ask(server, tmp_path, checkpoints="0")[BASE].limits == ()
