"""A table of what people wire, type and save, one row for each kind of thing that once went wrong.

Each runs from a workflow to a file, without ComfyUI, and is compared with a value from somewhere else. Details of a
kind stand in the tests of its module.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.core_nodes import CORE_CLASSES
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.local import run_document, saved_pictures
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.pictures import saving
from comfyui_aitk.pipelines.run import sample as sampling
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_engine")

SAMPLER = {
    "pipeline": ["load", 0], "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 1,
    "guidance_scale": 4.0, "seed": 7, "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "",
    "batch_size": 1,
}  # fmt: skip
LOAD = {"model": "lumina2", "weights": "tiny", "dtype": "float32"}
SAVE = {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"}


class Bench:
    """Runs one short graph with changes, and shows what came of it."""

    def __init__(self, host: PlainHost, models: Path) -> None:
        self.host = host
        self.models = models
        self.classes: dict[str, type] = {}

    def graph(self, sample: Any = {}, load: Any = {}, save: Any = {}, **more: Any) -> dict[str, Any]:  # noqa: B006
        nodes = {"load": ("LoadAITKModel", LOAD | load), "sample": ("AITKSampler", SAMPLER | sample)}
        nodes |= {"save": ("AITKSaveImage", SAVE | save), **more}
        return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}

    def run(self, *sets: str, **changes: Any) -> list[Path]:
        """The files that a graph saved."""
        return saved_pictures(run_document(self.graph(**changes), self.host, sets), self.host.output)

    def report(self, *sets: str, **changes: Any) -> dict[str, Any]:
        return json.loads(Image.open(self.run(*sets, **changes)[0]).info["aitk_report"])

    def pixels(self, **changes: Any) -> np.ndarray:
        return np.asarray(Image.open(self.run(**changes)[0]))

    def refused(self, words: str, *sets: str, **changes: Any) -> None:
        """One clear error, nothing saved, and the next run works."""
        before = self.saved()
        with pytest.raises(AITKError, match=words) as caught:
            self.run(*sets, **changes)
        assert len(str(caught.value)) < 2000
        assert str(self.host.output.parent) not in str(caught.value)
        assert self.saved() == before
        assert self.run()

    def saved(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.host.output.rglob("*") if path.is_file()}


@pytest.fixture
def bench(host: PlainHost, models: Path) -> Iterator[Bench]:
    return Bench(host, models)


Row = Callable[[Bench, pytest.MonkeyPatch], None]


def seeds(value: int) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        wired = {"sample": {"seed": ["number", 0]}, "number": ("PrimitiveInt", {"value": value})}
        assert bench.report(**wired)["seed"] == value
        assert np.array_equal(bench.pixels(**wired), bench.pixels(sample={"seed": value}))
        # a JavaScript number would have lost the last digit
        assert not np.array_equal(bench.pixels(**wired), bench.pixels(sample={"seed": value - 1}))

    return row


def no_seed(value: Any) -> Row:
    return lambda bench, _: bench.refused(r"choose 0 to 2\^64 - 1|takes INT", sample={"seed": value})


def editor(*extra: dict[str, Any], links: list[Any], source: Any = (2, 0), **more: Any) -> dict[str, Any]:
    """The graph as the editor saves it, with the pipeline coming from ``source``."""
    names = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed")
    values = [*(SAMPLER[name] for name in names), "fixed", "reference pipeline", "", "", 1]
    nodes = [
        {"id": 2, "type": "LoadAITKModel", "widgets_values": [*LOAD.values()], "outputs": [{"type": "AITK_PIPELINE"}]},
        {
            "id": 3, "type": "AITKSampler", "widgets_values": values,
            "inputs": [{"name": "pipeline", "type": "AITK_PIPELINE", "link": 1 if source else None}],
        },
        {
            "id": 4, "type": "AITKSaveImage", "widgets_values": ["x", "png"],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
        },
        *extra,
    ]  # fmt: skip
    lines = [[1, *source, 3, 0, "AITK_PIPELINE"]] if source else []
    return {"nodes": nodes, "links": [*lines, [2, 3, 0, 4, 0, "IMAGE"], *links], **more}


def drawn(*extra: dict[str, Any], links: list[Any] = [], source: Any = (2, 0), **more: Any) -> Row:  # noqa: B006
    """What the page draws otherwise gives the picture of the plain graph."""

    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        document = editor(*extra, links=links, source=source, **more)
        (path,) = saved_pictures(run_document(document, bench.host, []), bench.host.output)
        assert np.array_equal(np.asarray(Image.open(path)), bench.pixels())
        assert json.loads(Image.open(path).info["workflow"]) == document

    return row


def not_drawn(words: str, *extra: dict[str, Any], links: list[Any], source: Any = (2, 0), **more: Any) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        with pytest.raises(AITKError, match=words):
            run_document(editor(*extra, links=links, source=source, **more), bench.host, [])

    return row


def carrier(node_id: int, kind: str, link: int | None, name: str = "", **more: Any) -> dict[str, Any]:
    slots = [] if link is None else [{"name": "in", "type": "AITK_PIPELINE", "link": link}]
    outputs = [{"name": "out", "type": "AITK_PIPELINE"}]
    return {"id": node_id, "type": kind, "inputs": slots, "outputs": outputs, "widgets_values": [name], **more}


PICTURE = {"images": ["picture", 0]}
INTO_5 = [[5, 2, 0, 5, 0, "AITK_PIPELINE"]]
SENT = {"upstream": "2", "upstream_slot": 0, "downstream": 3, "downstream_slot": 0, "controller": 5, "type": "X"}


def named(prefix: str, expected: str) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        assert bench.run(save={"filename_prefix": prefix})[0].relative_to(bench.host.output).as_posix() == expected
        core = {"plain": ("SaveImage", {"images": ["sample", 0], "filename_prefix": f"core/{prefix}"})}
        assert f"core/{expected}" in [p.relative_to(bench.host.output).as_posix() for p in bench.run(**core)]

    return row


def untouched(prompt: str) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        assert bench.report(sample={"prompt": prompt, "system_prompt": prompt})["prompt"] == prompt
        inputs = NODE_CLASS_MAPPINGS["AITKSampler"].INPUT_TYPES()["required"]
        texts = [name for name, spec in inputs.items() if spec[0] == "STRING" and spec[1].get("multiline")]
        assert [inputs[name][1]["dynamicPrompts"] for name in texts] == [False] * 3

    return row


def noted(note: str, **sample: Any) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        report = bench.report(sample=sample)
        assert [line for line in report["notes"] if note in line]
        assert report["prompt"] == sample["prompt"]

    return row


def control(mode: str, size: tuple[int, int] = (80, 64)) -> Row:
    """A file of any mode comes to the pixels that Pillow makes of it, which is what AI Toolkit calls."""

    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        channels = len(mode)
        shape = (size[1], size[0], channels)
        values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        expected = np.asarray(Image.fromarray(values.squeeze(-1).numpy(), mode).convert("RGB"))
        (given,) = NODE_CLASS_MAPPINGS["AITKControlImages"]().collect(values[None].float() / 255)
        assert np.array_equal((given.images[0][0] * 255).round().byte().numpy(), expected)
        assert bool(given.notes) == ("A" in mode)

    return row


def no_control(words: str, image: Any) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        with pytest.raises(AITKError, match=words):
            NODE_CLASS_MAPPINGS["AITKControlImages"]().collect(image)

    return row


def latent(shape: tuple[int, ...], pictures: int, size: tuple[int, int], values: float = 0.0, **sample: Any) -> Row:
    def row(bench: Bench, _: pytest.MonkeyPatch) -> None:
        (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(**LOAD)
        given = {"samples": torch.full(shape, values)}
        inputs = SAMPLER | {"pipeline": pipeline, "width": 512, "latent": given} | sample
        made = NODE_CLASS_MAPPINGS["AITKSampler"]().sample(**inputs)["result"]
        assert (tuple(made[0].shape), made[2:4]) == ((pictures, size[1], size[0], 3), size)

    return row


def no_report(bench: Bench, _: pytest.MonkeyPatch) -> None:
    graph = bench.graph()
    del graph["save"]["inputs"]["report"]
    (path,) = saved_pictures(run_document(graph, bench.host, []), bench.host.output)
    assert "aitk_report" not in Image.open(path).info


def another_model(bench: Bench, _: pytest.MonkeyPatch) -> None:
    bench.refused("(?i)set model to lumina2", load={"model": "flux2"})
    bench.refused("(?i)set model to lumina2", load={"model": "zimage"})


def many_writers(bench: Bench, _: pytest.MonkeyPatch) -> None:
    def save(number: int) -> None:
        picture = torch.full((1, 8, 8, 3), number / 255)
        NODE_CLASS_MAPPINGS["AITKSaveImage"]().save(picture, filename_prefix="p")
        CORE_CLASSES["SaveImage"]().save_images(picture, "p")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(40)))
    found = sorted(int(np.asarray(Image.open(path))[0, 0, 0]) for path in bench.host.output.iterdir())
    assert found == sorted([*range(40), *range(40)])


def full_disk(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(AITKError, match="cannot be saved: No space left on device"):
            bench.run()
    assert bench.saved() == {}
    assert bench.run()


def gone_folder(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    target = PlainHost.save_target

    def gone(host: PlainHost, *values: Any) -> Any:
        found = target(host, *values)
        found.folder.rmdir()
        return found

    with patch.context() as context:
        context.setattr(PlainHost, "save_target", gone)
        with pytest.raises(AITKError, match="cannot be saved: No such file or directory"):
            bench.run(save={"filename_prefix": "sub/x"})
    assert bench.run()


def half_a_picture(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    """While a picture is written, nobody sees it under its name."""
    seen: list[list[str]] = []
    save = Image.Image.save

    def watched(picture: Image.Image, file: Any, *values: Any, **named: Any) -> None:
        file.write(b"half")
        file.flush()
        seen.append([path.name for path in bench.host.output.glob("*.png")])
        file.seek(0)
        save(picture, file, *values, **named)

    patch.setattr(Image.Image, "save", watched)
    (path,) = bench.run()
    assert seen == [[]]
    assert Image.open(path).size == (64, 64)


def leftovers(bench: Bench, _: pytest.MonkeyPatch) -> None:
    bench.host.output.mkdir()
    dead, live = (bench.host.output / f".{letter * 32}.part" for letter in "ab")
    dead.write_bytes(b"half")
    with live.open("xb") as file:
        if saving.fcntl is not None:
            saving.fcntl.flock(file, saving.fcntl.LOCK_EX)
        for path in (dead, live):
            os.utime(path, (0, 0))
        bench.run()
    assert [name for name in bench.saved() if name.endswith(".part")] == [live.name]


def threads(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    """Runs of two threads take turns: one is inside at a time, and each gives the picture of its own seed."""
    expected = {seed: bench.pixels(sample={"seed": seed}) for seed in range(4)}
    found: dict[int, np.ndarray] = {}
    inside: list[int] = []
    met: list[list[int]] = []
    run = sampling._sample

    def watched(engine: Any, handle: Any, request: Any, *rest: Any) -> Any:
        inside.append(request.seed)
        # long enough for another thread to come in, if any can
        time.sleep(0.05)
        met.append(list(inside))
        try:
            return run(engine, handle, request, *rest)
        finally:
            inside.remove(request.seed)

    patch.setattr(sampling, "_sample", watched)

    def work(seed: int) -> None:
        result = run_prompt(bench.graph(sample={"seed": seed}), {**CORE_CLASSES, **NODE_CLASS_MAPPINGS})
        found[seed] = (result.results["sample"][0][0] * 255).round().byte().numpy()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, expected))
    assert sorted(met) == [[0], [1], [2], [3]]
    assert [seed for seed in expected if not np.array_equal(found[seed], expected[seed])] == []


def short_words(bench: Bench, _: pytest.MonkeyPatch) -> None:
    (handle,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(**LOAD)
    assert isinstance(handle, PipelineHandle)
    graph = bench.graph(preview=("PreviewAny", {"source": ["load", 0]}))
    outputs = run_document(graph, bench.host, []).outputs
    assert outputs["preview"]["text"] == ("AITK pipeline: lumina2, tiny, float32",)


def escaped(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType, SimpleNamespace

    from comfyui_aitk.nodes.host.comfyui import ComfyHost

    sent: list[str] = []
    server = SimpleNamespace(client_id="page", send_progress_text=lambda text, *_: sent.append(text))
    module = ModuleType("server")
    vars(module).update(PromptServer=SimpleNamespace(instance=server))
    patch.setitem(sys.modules, "server", module)
    (note,) = bench.report(sample={"prompt": 'a --n <img src=x onerror="x">', "recipe": "trainer preview"})["notes"]
    ComfyHost().show_text("1", note)
    assert "&lt;img src=x onerror=" in sent[0]
    assert "<" not in sent[0]


def multiplied(depth: int, uses: int) -> list[dict[str, Any]]:
    """Subgraphs that each hold the one before so many times."""
    inner = [{"id": n, "type": "PreviewAny"} for n in range(uses)]
    graphs = [{"id": "g0", "nodes": inner}]
    for level in range(1, depth):
        graphs.append({"id": f"g{level}", "nodes": [{"id": n, "type": f"g{level - 1}"} for n in range(uses)]})
    return graphs


def bomb(bench: Bench, _: pytest.MonkeyPatch) -> None:
    """A file of some kilobytes that unpacks to gigabytes: its header tells, and no node runs."""
    Image.new("1", (11_000, 11_000)).save(bench.host.input / "b.png")
    bench.refused("is too large: ", picture=("LoadImage", {"image": "b.png"}), show=("PreviewImage", PICTURE))


def not_begun(words: str, **changes: Any) -> Row:
    """Refused before a node runs: a picture may take hours."""

    def row(bench: Bench, patch: pytest.MonkeyPatch) -> None:
        with patch.context() as context:
            context.setattr(sampling, "_sample", lambda *_: pytest.fail("it ran"))
            with pytest.raises(AITKError, match=words):
                bench.run(**changes)
        assert bench.run()

    return row


def wrong(words: str, **changes: Any) -> Row:
    return lambda bench, _: bench.refused(words, **changes)


def wrong_set(words: str, *sets: str) -> Row:
    return lambda bench, _: bench.refused(words, *sets)


TODAY = f"{datetime.now():%Y-%m-%d}"

ROWS: dict[str, Row] = {
    # seeds that a JavaScript number does not hold, over a wire
    "R1 2^53": seeds(2**53),
    "R1 2^53+1": seeds(2**53 + 1),
    "R1 2^63": seeds(2**63),
    "R1 2^64-1": seeds(2**64 - 1),
    "R1 2^64": no_seed(2**64),
    "R1 -1": no_seed(-1),
    "R1 text": no_seed("x"),
    # nodes of the page alone, and wires without lines
    "V1 label": drawn({"id": 9, "type": "Label (rgthree)"}),
    "V1 group switch": drawn({"id": 9, "type": "Fast Groups Bypasser (rgthree)"}),
    "V1 switch with lines": drawn(carrier(5, "Fast Muter (rgthree)", 5), links=INTO_5),
    "V1 note of core": drawn({"id": 9, "type": "MarkdownNote", "widgets_values": ["# hi"]}),
    "V1 banner of an unknown pack": drawn({"id": 9, "type": "Banner", "widgets_values": ["hi"]}),
    "V1 reroute": drawn(carrier(5, "Reroute", 5), links=INTO_5, source=(5, 0)),
    "V1 reroute of rgthree": drawn(carrier(5, "Reroute (rgthree)", 5), links=INTO_5, source=(5, 0)),
    "V1 Set and Get of KJNodes": drawn(
        carrier(5, "SetNode", 5, "p"), carrier(6, "GetNode", None, "p"), links=INTO_5, source=(6, 0)
    ),
    "V1 Set and Get of Easy-Use": drawn(
        carrier(5, "easy setNode", 5, "p"), carrier(6, "easy getNode", None, "p"), links=INTO_5, source=(6, 0)
    ),
    "V1 Use Everywhere": drawn(
        carrier(5, "Anything Everywhere", 5), links=INTO_5, source=None, extra={"ue_links": [SENT]}
    ),
    "V1 bypassed node": drawn(carrier(5, "AITKTrainingAdapter", 5, mode=4), links=INTO_5, source=(5, 0)),
    "V1 muted node": not_drawn("'pipeline' is missing", carrier(5, "Reroute", 5, mode=2), links=INTO_5, source=(5, 0)),
    "V1 Get without Set": not_drawn("gets 'q'", carrier(6, "GetNode", None, "q"), links=[], source=(6, 0)),
    "V1 saver of an unknown pack": not_drawn("'Save Plus' .node 5", carrier(5, "Save Plus", 5), links=INTO_5),
    # placeholders in file names
    "V3 date": named("%date:yyyy-MM-dd%", f"{TODAY}_00001_.png"),
    "V3 date as folder": named("%date:yyyy-MM-dd%/p", f"{TODAY}/p_00001_.png"),
    "V3 node's input": named("s%AITKSampler.seed%", "s7_00001_.png"),
    "V3 size": named("%width%", "64_00001_.png"),
    "V3 unknown": named("%Nobody.seed%", "%Nobody.seed%_00001_.png"),
    "V3 long prompt in a name": not_begun(
        "too long", sample={"prompt": "x" * 300}, save={"filename_prefix": "%AITKSampler.prompt%"}
    ),
    # prompts are taken as typed
    "DP braces": untouched('{"a": "b|c"}'),
    "DP address": untouched("https://x.org/a // comment /* b */"),
    # trigger words that stay
    "TR [trigger]": noted("[trigger] stays in the prompt", prompt="[trigger], a cat"),
    "TR [name]": noted("[name] stays in the prompt", prompt="[name]"),
    "TR blank word": noted("[trigger] stays in the prompt", prompt="[trigger]", trigger_word=" \n"),
    "TR negative prompt": noted("stays in the negative prompt", prompt="a", negative_prompt="[name]"),
    # control images of any kind
    "AL RGBA": control("RGBA"),
    "AL LA": control("LA"),
    "AL grey": control("L"),
    "AL one pixel": control("RGB", (1, 1)),
    "AL mask": no_control("image_1 is no picture", torch.zeros(1, 8, 8)),
    "AL batch": no_control("image_1 holds 2 pictures", torch.zeros(2, 8, 8, 3)),
    "AL NaN": no_control("image_1 holds NaN or Inf", torch.full((1, 8, 8, 3), torch.nan)),
    # latents give their size and their number
    "EL empty, 4 channels": latent((1, 4, 16, 8), 1, (64, 128)),
    "EL empty, 16 channels": latent((1, 16, 8, 8), 1, (64, 64)),
    "EL empty batch": latent((3, 4, 8, 8), 3, (64, 64)),
    "EL batch of pictures": latent((2, 16, 8, 8), 2, (64, 64), 0.5, denoise=0.5),
    # a picture needs no report
    "SV no report": no_report,
    "MM another model's folder": another_model,
    # names are taken once
    "COL many writers": many_writers,
    # whole or not there
    "CUT half a picture": half_a_picture,
    "CUT full disk": full_disk,
    "CUT folder gone": gone_folder,
    "CUT name of 255 characters": not_begun("filename_prefix 'x", save={"filename_prefix": "x" * 255}),
    "CUT leftovers of a killed program": leftovers,
    "TH two threads": threads,
    # anything where something else belongs
    "RAW null as name": wrong("weights", load={"weights": None}),
    "RAW number as name": wrong("weights", load={"weights": 5}),
    "RAW list as name": wrong("weights", load={"weights": {"__value__": ["tiny"]}}),
    "RAW repository a--b": wrong("is no Hugging Face", load={"weights": "default", "repo_id": "owner/a--b"}),
    "RAW repository .git": wrong("is no Hugging Face", load={"weights": "default", "repo_id": "owner/a.git"}),
    "RAW repository naïve": wrong("is no Hugging Face", load={"weights": "default", "repo_id": "owner/naïve"}),
    "RAW path": wrong("refused", load={"weights": "../../etc"}),
    "RAW unknown --set": wrong_set("no node has that id", "Nobody.seed=1"),
    "RAW 1,500 reroutes": drawn(
        *(carrier(n, "Reroute", n) for n in range(5, 1505)),
        links=[*INTO_5, *([n, n - 1, 0, n, 0, "*"] for n in range(6, 1505))],
        source=(1504, 0),
    ),
    "RAW subgraphs that multiply": not_drawn(
        "more than 200,000", {"id": 9, "type": "g9"}, links=[], definitions={"subgraphs": multiplied(10, 10)}
    ),
    "RAW PNG bomb": bomb,
    "RP handle's words": short_words,
    "HT prompt's flags": escaped,
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_row(bench: Bench, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    row(bench, monkeypatch)
