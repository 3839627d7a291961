"""Other files that a job names: found in ComfyUI's folders or the hub's cache, loaded where AI Toolkit does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.training_job import AITKTrainingJob
from comfyui_aitk.pipelines.errors import AITKError

GOLDEN = Path(__file__).parent.parent / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TURBO = "Tongyi-MAI/Z-Image-Turbo"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def opened_pipeline(tmp_path, host):
    """``opened_pipeline(arch, weights, name_or_path=..., ...)`` opens a job with such a model section: the pipeline and
    its summary."""
    for kind in ("diffusers", "diffusion_models", "vae", "loras"):
        (tmp_path / "models" / kind).mkdir(parents=True)
    use_host(PlainHost(tmp_path / "models", host.input, host.output, "cpu"))
    folder = Path(shutil.copytree(GOLDEN / "jobs" / "lumina2_png", host.input / "job"))
    config = yaml.safe_load((folder / "config.yaml").read_text())

    def open_with(arch, weights="default", **section):
        config["config"]["process"][0]["model"] = {"arch": arch, **section}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        _, pipeline, summary = AITKTrainingJob().open("job", weights)
        return pipeline, summary

    return open_with


@pytest.fixture
def opened(opened_pipeline):
    """The same, with the names of the pipeline's sources by part."""

    def open_with(arch, weights="default", **section):
        pipeline, summary = opened_pipeline(arch, weights, **section)
        return {one.component: one.name for one in pipeline.checkpoint.sources}, summary

    return open_with


@pytest.fixture
def folders(tmp_path, opened):
    return tmp_path / "models"


@pytest.fixture
def cached(hub_cache):
    """Puts a folder into the hub's cache under a repository's id."""

    def put(repository, folder):
        home = hub_cache / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / COMMIT)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(COMMIT)
        return f"{repository}@{COMMIT[:12]}"

    return put


def base(model):
    return GOLDEN / model / "base"


def test_lumina2_takes_its_text_encoder_from_te_name_or_path(opened, folders, cached):
    shutil.copytree(base("lumina2"), folders / "diffusers" / "mine")
    alone = Path(shutil.copytree(base("lumina2") / "text_encoder", folders / "diffusers" / "gemma"))
    for file in (base("lumina2") / "tokenizer").iterdir():
        shutil.copy(file, alone)
    found, summary = opened("lumina2", name_or_path="/home/me/mine", te_name_or_path="/home/me/models/gemma")
    assert found == {"transformer": "mine", "text_encoder": "gemma", "vae": "mine"}
    assert "'/home/me/mine', is taken to be 'mine'" in summary
    repository = cached("me/gemma", alone)
    assert opened("lumina2", "mine", name_or_path="a/b", te_name_or_path="me/gemma")[0]["text_encoder"] == repository
    for path in ("/home/me/models/other", r"C:\models\..\other", "/x/../../mine/../other"):
        with pytest.raises(AITKError, match=r"\(model\.te_name_or_path\), which is no repository.* as 'other'"):
            opened("lumina2", "mine", name_or_path="a/b", te_name_or_path=path)


def test_omnigen2_takes_everything_else_from_extras_name_or_path(opened, folders, cached):
    shutil.copytree(base("omnigen2"), folders / "diffusers" / "mine")
    repository = cached("me/extras", base("omnigen2"))
    found, _ = opened("omnigen2", "mine", name_or_path="a/b", extras_name_or_path="me/extras")
    assert found == {"transformer": "mine", "text_encoder": repository, "vae": repository}


def test_flux2_takes_its_autoencoder_from_vae_path(opened, folders, cached):
    shutil.copytree(base("flux2"), folders / "diffusers" / "mine")
    shutil.copy(base("flux2") / "ae.safetensors", folders / "vae" / "own_vae.safetensors")
    found, _ = opened("flux2", "mine", name_or_path="a/b", vae_path="/home/me/own_vae.safetensors")
    assert found == {"transformer": "mine/flux2-dev.safetensors", "text_encoder": "mine", "vae": "own_vae.safetensors"}
    repository = cached("me/vae", base("flux2"))
    for path in ("me/vae", "me/vae/ae.safetensors"):
        found, _ = opened("flux2", "mine", name_or_path="a/b", vae_path=path)
        assert found["vae"] == f"{repository}/ae.safetensors"
    # of a folder that has one, AI Toolkit takes that
    assert opened("flux2", name_or_path="/home/me/mine", vae_path="me/vae")[0]["vae"] == "mine/ae.safetensors"
    with pytest.raises(AITKError, match=r"model\.vae_path\), which is no repository, and nothing in 'vae'"):
        opened("flux2", "mine", name_or_path="a/b", vae_path="/home/me/gone.safetensors")


def test_z_image_s_base_may_be_a_file_with_the_rest_from_turbo_s_repository(opened, folders, cached):
    shutil.copy(base("zimage") / "transformer" / WEIGHTS, folders / "diffusion_models" / "mine.safetensors")
    turbo = cached(TURBO, base("zimage"))
    found, _ = opened("zimage", name_or_path="/home/me/mine.safetensors")
    assert found == {"transformer": "mine.safetensors", "text_encoder": turbo, "vae": turbo}
    extras = cached("me/extras", base("zimage"))
    found, _ = opened("zimage", name_or_path="/home/me/mine.safetensors", extras_name_or_path="me/extras")
    assert found == {"transformer": "mine.safetensors", "text_encoder": extras, "vae": extras}
    with pytest.raises(AITKError, match=r"have no 'gone\.safetensors'\. Set weights to the same model here"):
        opened("zimage", name_or_path="/home/me/gone.safetensors")


def test_what_ai_toolkit_does_not_read_is_said_and_left_out(opened, folders):
    shutil.copytree(base("lumina2"), folders / "diffusers" / "mine")
    found, summary = opened("lumina2", "mine", name_or_path="a/b", vae_path="me/vae", lora_path="/x/y.safetensors")
    assert set(found.values()) == {"mine"}
    assert "model.vae_path to 'me/vae', which AI Toolkit does not read for Lumina Image 2.0" in summary
    assert "model.lora_path to '/x/y.safetensors', at which AI Toolkit stops" in summary


ARA = "me/adapters/ara_uint3.safetensors"
QUANTISED = {"name_or_path": "a/b", "quantize": True, "quantize_te": False}


def test_a_job_s_recovery_adapter_is_found_and_put_on(opened, opened_pipeline, folders, cached, tmp_path):
    shutil.copytree(base("zimage"), folders / "diffusers" / "mine")
    section = {**QUANTISED, "qtype": f"uint3|{ARA}"}
    with pytest.raises(
        AITKError, match=rf"under the recovery adapter '{ARA}' .* forbids downloads. Put it there as 'ara_uint3"
    ):
        opened("zimage", "mine", **section)
    with pytest.raises(AITKError, match=r"recovery adapter '/home/me/own\.safetensors' .* 'own\.safetensors'"):
        opened("zimage", "mine", **QUANTISED, qtype="uint3|/home/me/own.safetensors")
    (tmp_path / "adapters").mkdir()
    lora = GOLDEN / "zimage" / "lora" / "lora_all_f32.safetensors"
    shutil.copy(lora, tmp_path / "adapters" / "ara_uint3.safetensors")
    cached("me/adapters", tmp_path / "adapters")
    of_hub, _ = opened_pipeline("zimage", "mine", **section)
    shutil.copy(lora, folders / "loras" / "ara_uint3.safetensors")
    of_folder, summary = opened_pipeline("zimage", "mine", **section)
    for pipeline, home in ((of_hub, "snapshots"), (of_folder, "loras")):
        assert pipeline.recovery.qtype == "uint3"
        (adapter,) = pipeline.loras
        assert (adapter.name, adapter.strength, adapter.arithmetic) == ("ara_uint3.safetensors", 1.0, "recovery")
        assert home in str(adapter.file.path)
        assert pipeline.options.transformer_quantization == "uint3"
    assert "accuracy_recovery_adapter" not in summary
    plain, summary = opened_pipeline("zimage", "mine", **{**section, "quantize": False})
    assert (plain.recovery, plain.loras) == (None, ())
    assert "which AI Toolkit does not read without model.quantize" in summary
    of_none, _ = opened_pipeline("zimage", "mine", **QUANTISED, qtype=f"uint8|{ARA}")
    assert (of_none.recovery.qtype, of_none.options.transformer_quantization) == ("uint8", "none")


def test_a_turbo_job_s_training_adapter_is_under_its_weights(opened, opened_pipeline, folders, cached, tmp_path):
    """AI Toolkit z_image.py load_model: merged, then float8 where the job says qfloat8, and taken off live."""
    shutil.copytree(base("zimage"), folders / "diffusers" / "mine")
    section = {**QUANTISED, "assistant_lora_path": "me/adapters/turbo_v2.safetensors"}
    gone, summary = opened_pipeline("zimage:turbo", "mine", **section)
    assert "'turbo_v2.safetensors', which is not in 'loras': the last bits differ" in summary
    assert (gone.loras, gone.options.transformer_quantization) == ((), "float8")
    (tmp_path / "adapters").mkdir()
    shutil.copy(GOLDEN / "zimage" / "lora" / "adapter_f16.safetensors", tmp_path / "adapters" / "turbo_v2.safetensors")
    cached("me/adapters", tmp_path / "adapters")
    for own, held in (
        (section, "float8"),
        ({**section, "qtype": "uint4"}, "uint4"),
        ({**section, "quantize": False}, "none"),
    ):
        pipeline, summary = opened_pipeline("zimage:turbo", "mine", **own)
        assert pipeline.checkpoint.source("transformer").name == "mine + turbo_v2.safetensors"
        assert [(one.strength, one.arithmetic, one.application) for one in pipeline.loras] == [(-1.0, "peft", "live")]
        assert pipeline.options.transformer_quantization == held
        assert "turbo_v2" not in summary
    with pytest.raises(AITKError, match=r"both a recovery adapter .* and model\.assistant_lora_path"):
        opened("zimage:turbo", "mine", **section, qtype=f"uint3|{ARA}")
