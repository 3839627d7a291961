"""Control images are encoded once, and whoever gets them from memory gets the bits of a fresh engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, omnigen2
from comfyui_aitk.pipelines.engine.encoded_pictures import EncodedPictures, PictureEncodings, PicturesKey
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.handle import ControlImages, Lease, PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.model import Model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.run import Progress, prepare
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from comfyui_aitk.pipelines.run.start import starts
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import leases_ended, noise_image, wanted

FLUX2 = ("flux2", "flux2_klein_4b")
OMNIGEN2_RECIPES = ("trainer preview", "reference pipeline")
ONE, OTHER = noise_image(96, 64), noise_image(64, 128, seed=1)


@pytest.fixture(scope="module")
def handles(tmp_path_factory) -> dict[str, PipelineHandle]:
    """Model -> its handle, in float32."""
    folder = tmp_path_factory.mktemp("control")
    made = {model: flux2.make_checkpoint(folder / model, model) for model in FLUX2}
    made["omnigen2"] = omnigen2.make_checkpoint(folder / "omnigen2")
    return {
        model: PipelineHandle(model, Checkpoint.open(path, model, find_model(model).files), "float32")
        for model, path in made.items()
    }


def request(recipe: str = "trainer preview", *images: torch.Tensor, **change: object) -> SampleRequest:
    own = SampleRequest(recipe, "a fox", width=64, height=80, steps=1, guidance_scale=1.0, seed=1)
    return replace(own, control=ControlImages(images or (ONE,)), **change)


def run(engine: Engine, handle: PipelineHandle, asked: SampleRequest) -> SampleResult:
    return sample(engine, handle, asked, SilentObserver())


def encoded(result: SampleResult) -> int:
    return result.report["work"]["pictures_encoded"]


def begun(engine: Engine, handle: PipelineHandle, asked: SampleRequest) -> list[tuple]:
    """What each picture begins with: its references, and the noise that its generator draws next."""
    own, _ = prepare(engine, handle, asked, SilentObserver(), Progress(engine.counters))
    with torch.no_grad():
        found = starts(engine, own.wanted, own.job, own.seeds, SilentObserver())
    return [(start.references, torch.randn(64, generator=start.generator)) for start in found]


def same(one: list[tuple], other: list[tuple]) -> bool:
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip((*x[0], x[1]), (*y[0], y[1]), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("model", FLUX2)
def test_another_seed_needs_no_encoding_where_nothing_is_drawn(handles, model):
    engine, handle = Engine(PlainMachine()), handles[model]
    first = run(engine, handle, request("trainer preview", ONE, OTHER))
    assert encoded(first) == 2
    again = run(engine, handle, request("trainer preview", ONE, OTHER, seed=2, batch_size=2, height=64))
    work = again.report["work"]
    assert encoded(again) == 0
    assert work["parts_loaded"] == 0
    fresh = run(Engine(PlainMachine()), handle, request("trainer preview", ONE, OTHER, seed=2, batch_size=2, height=64))
    assert torch.equal(again.images, fresh.images)
    assert torch.equal(again.latent, fresh.latent)


@pytest.mark.parametrize("model", FLUX2)
def test_the_autoencoder_does_not_come_to_encode_what_is_known(handles, model, monkeypatch):
    engine, handle = Engine(PlainMachine()), handles[model]
    begun(engine, handle, request())

    def refuse(*_: object) -> None:
        raise AssertionError("it came")

    monkeypatch.setattr(engine, "on_device", refuse)
    begun(engine, handle, request(seed=9, batch_size=3))
    with pytest.raises(AssertionError, match="it came"):
        begun(engine, handle, request("trainer preview", OTHER))


@pytest.mark.parametrize("recipe", OMNIGEN2_RECIPES)
def test_what_is_drawn_is_its_seed_s_and_the_noise_after_it_is_the_same(handles, recipe):
    """Seeds in turns, batches over them, and both recipes, which draw with one generator or with two."""
    engine, handle = Engine(PlainMachine()), handles["omnigen2"]
    asked = [
        request(recipe, seed=1), request(recipe, seed=2), request(recipe, seed=1),
        request(recipe, seed=1, batch_size=2), request(recipe, seed=0, batch_size=3), request(recipe, seed=2),
    ]  # fmt: skip
    counts = []
    for one in asked:
        before = engine.counters.pictures_encoded
        found = begun(engine, handle, one)
        counts.append(engine.counters.pictures_encoded - before)
        assert same(found, begun(Engine(PlainMachine()), handle, one)), one.seed
    assert counts == [1, 1, 0, 0, 1, 0]


def test_omnigen2_s_pictures_are_a_fresh_engine_s(handles):
    engine, handle = Engine(PlainMachine()), handles["omnigen2"]
    expected: dict[tuple[str, int], torch.Tensor] = {}
    for recipe in (*OMNIGEN2_RECIPES, *OMNIGEN2_RECIPES):
        for seed in (1, 2, 1):
            result = run(engine, handle, request(recipe, seed=seed))
            if (recipe, seed) not in expected:
                assert encoded(result) == 1
                expected[recipe, seed] = run(Engine(PlainMachine()), handle, request(recipe, seed=seed)).latent
            else:
                assert encoded(result) == 0
            assert torch.equal(result.latent, expected[recipe, seed])
        batch = run(engine, handle, request(recipe, seed=1, batch_size=2))
        assert encoded(batch) == 0
        assert torch.equal(batch.latent, torch.cat([expected[recipe, seed] for seed in (1, 2)]))
    assert not torch.equal(expected["trainer preview", 1], expected["trainer preview", 2])


@pytest.mark.parametrize("model", [*FLUX2, "omnigen2"])
def test_other_pictures_and_other_autoencoders_are_encoded(handles, model):
    engine, handle = Engine(PlainMachine()), handles[model]
    recipe = "reference pipeline" if model == "omnigen2" else "trainer preview"
    half = replace(handle, dtype="bfloat16")
    # the last are the first again
    asked = [
        (handle, (ONE,)), (handle, (OTHER,)), (handle, (ONE, OTHER)), (handle, (OTHER, ONE)), (half, (ONE,)),
        (handle, (ONE.clone(),)), (handle, (OTHER, ONE)),
    ]  # fmt: skip
    counts = []
    for own, images in asked:
        before = engine.counters.pictures_encoded
        found = begun(engine, own, request(recipe, *images))
        counts.append(engine.counters.pictures_encoded - before)
        assert same(found, begun(Engine(PlainMachine()), own, request(recipe, *images)))
    assert counts == [1, 1, 2, 2, 1, 0, 0]


def test_the_size_counts_where_pictures_are_squashed_to_it(handles):
    engine, handle = Engine(PlainMachine()), handles["omnigen2"]
    for recipe, again in (("trainer preview", 1), ("reference pipeline", 0)):
        begun(engine, handle, request(recipe))
        before = engine.counters.pictures_encoded
        other = request(recipe, width=96)
        assert same(begun(engine, handle, other), begun(Engine(PlainMachine()), handle, other))
        assert engine.counters.pictures_encoded - before == again


def test_a_model_that_says_nothing_shares_nothing_between_recipes_and_sizes(handles):
    engine, handle = Engine(PlainMachine()), handles["omnigen2"]
    model = engine.model(handle)
    asked = [request(), request(width=96), request("reference pipeline"), request()]
    found = [
        Model.reference_settings(
            model, prepare(engine, handle, own, SilentObserver(), Progress(engine.counters))[0].job
        )
        for own in asked
    ]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_a_generator_that_is_used_without_a_seed_s_key_is_noticed(handles, monkeypatch):
    engine, handle = Engine(PlainMachine()), handles["flux2"]
    model = type(engine.model(handle))
    encode = model.encode_references

    def draw(self, autoencoder, job, generator, device):
        torch.randn(1, generator=generator)
        return encode(self, autoencoder, job, generator, device)

    monkeypatch.setattr(model, "encode_references", draw)
    with pytest.raises(AssertionError, match="no other seed's"):
        begun(engine, handle, request())


def test_giving_back_and_the_end_of_the_last_lease_forget_them(handles):
    engine, handle = Engine(PlainMachine()), handles["flux2"]
    engine.leases.grace = 0

    def count(own: PipelineHandle = handle) -> int:
        before = engine.counters.pictures_encoded
        begun(engine, own, request())
        return engine.counters.pictures_encoded - before

    assert [count(), count()] == [1, 0]
    engine.release()
    assert [count(), count()] == [1, 0]
    first, second = (replace(handle, lease=Lease()) for _ in range(2))
    assert [count(first), count(second)] == [0, 0]
    del first
    leases_ended()
    assert count(second) == 0
    del second
    leases_ended()
    assert count() == 1


def test_the_least_used_leave_where_there_is_no_room(engine, handles):
    part = wanted(engine, handles["flux2"]).keys["vae"]
    keys = [PicturesKey(part, (), (Picture.of(ONE),), None, "cpu", seed) for seed in range(4)]
    kept = PictureEncodings(most_bytes=1000)
    for key in keys[:2]:
        kept.put(key, EncodedPictures((torch.zeros(100),), torch.zeros(24)))
    assert kept.find(keys[0]) is not None
    kept.put(keys[2], EncodedPictures((torch.zeros(100),), torch.zeros(24)))
    assert [kept.find(key) is not None for key in keys] == [True, False, True, False]
    kept.put(keys[3], EncodedPictures((torch.zeros(1000),)))
    assert [kept.find(key) for key in keys] == [None] * 4
