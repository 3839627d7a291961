"""What a job's model section asks for."""

from __future__ import annotations

import re

import pytest
from comfyui_aitk.pipelines.jobs.architecture import facts_of
from comfyui_aitk.pipelines.jobs.model_kwargs import options_of
from comfyui_aitk.pipelines.jobs.model_section import read_model, wanted_model
from comfyui_aitk.pipelines.options import RECOVERY_TYPES

TURBO = "Tongyi-MAI/Z-Image-Turbo"


def model_of(section, trained_with="0.12.26", train=None):
    return read_model({"model": {"name_or_path": "a/b"} | section, "train": train or {"dtype": "bf16"}}, trained_with)[
        0
    ]


@pytest.mark.parametrize(
    ("section", "arch"),
    [
        ({"arch": "lumina2"}, "lumina2"), ({"is_lumina2": True}, "lumina2"), ({"is_flux": True}, "flux"),
        ({"is_xl": True}, "sdxl"), ({"is_lumina2": False}, "sd1"), ({}, "sd1"), ({"arch": "flex1"}, "flux"),
        ({"arch": "zimage:turbo"}, "zimage:turbo"), ({"arch": None, "is_v_pred": True}, "sd1"),
        ({"arch": "omnigen2", "is_lumina2": True}, "omnigen2"),
    ],
)  # fmt: skip
def test_arch(section, arch):
    assert model_of(section).arch == arch


@pytest.mark.parametrize(
    ("arch", "base", "model"),
    [
        ("zimage", TURBO, "zimage:turbo"), ("zimage:turbo", TURBO, "zimage:turbo"), ("zimage", "a/b", "zimage"),
        ("zimage:turbo", "/models/mine.safetensors", "zimage:turbo"), ("zimage:other", "a/b", "zimage"),
        ("flux2", "black-forest-labs/FLUX.2-dev", "flux2"), ("flux2_klein_9b:x", "a/b", "flux2_klein_9b"),
        ("sd1", "a/b", None),
    ],
)  # fmt: skip
def test_the_catalogue_s_entry_of_a_job(arch, base, model):
    facts = facts_of(model_of({"arch": arch, "name_or_path": base}))
    assert (facts.id if facts else None) == model


@pytest.mark.parametrize(
    ("arch", "base", "edit", "model"),
    [
        ("krea2", "krea/Krea-2-Turbo", None, "krea2:turbo"),
        ("krea2:o_edit", "krea/Krea-2-Raw", True, "krea2:o_edit"),
        ("krea2:o_edit_turbo", "krea/Krea-2-Turbo", True, "krea2:o_edit_turbo"),
        ("krea2:o_edit_turbo", "/mine", True, "krea2:o_edit_turbo"),
        # the arch says nothing, and AI Toolkit asks model_kwargs alone
        ("krea2", "/mine", True, "krea2:o_edit"),
        ("krea2:o_edit", "/mine", False, "krea2"),
        ("krea2:o_edit", "krea/Krea-2-Turbo", None, "krea2:turbo"),
    ],
)
def test_entries_of_one_repository_are_told_by_model_kwargs(arch, base, edit, model):
    kwargs = {} if edit is None else {"model_kwargs": {"edit": edit}}
    facts = facts_of(model_of({"arch": arch, "name_or_path": base} | kwargs))
    assert facts is not None
    assert facts.id == model


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        (None, {"schedule_mu": 0.0}),
        ({"schedule_mu": 1.15, "use_comfy_weights": False}, {"schedule_mu": 1.15}),
        # AI Toolkit's default of both is off, unlike its presets'
        ({"edit": True}, {"schedule_mu": 0.0, "kv_cache": False, "match_target_res": False}),
        ({"edit": True, "kv_cache": True}, {"schedule_mu": 0.0, "kv_cache": True, "match_target_res": False}),
        ({"schedule_y1": 0.5, "schedule_max_res": 1280, "mmdit_config": None}, {"schedule_mu": 0.0}),
    ],
)
def test_model_kwargs_become_options_of_the_recipes(kwargs, options):
    model = model_of({"arch": "krea2", "model_kwargs": kwargs})
    assert dict(options_of(model).values) == options
    assert wanted_model(model).problems == ()


@pytest.mark.parametrize(
    ("key", "value"), [("schedule_y1", 0.6), ("max_text_length", 256), ("vae_path", "/mine"), ("schedule_mu", "high")]
)
def test_model_kwargs_that_this_pack_lacks_are_named(key, value):
    (problem,) = wanted_model(model_of({"arch": "krea2", "model_kwargs": {key: value}})).problems
    assert problem.startswith(f"The job sets model_kwargs.{key} to ")
    assert problem.endswith("which this pack lacks for Krea 2.")


@pytest.mark.parametrize(
    ("section", "denoiser", "encoder"),
    [
        ({}, "none", "none"),
        ({"quantize": True}, "qfloat8", "qfloat8"),
        ({"quantize": True, "quantize_te": False, "qtype": "uint4|a/b/c"}, "uint4", "none"),
        ({"quantize": True, "layer_offloading": True, "qtype_te": "int8"}, "float8", "int8"),
        ({"quantize": True, "auto_memory": True}, "float8", "float8"),
        # AI Toolkit compares the key as it is written
        ({"quantize": True, "auto_memory": True, "qtype": "qfloat8|a/b/c"}, "qfloat8", "float8"),
        ({"quantize": True, "auto_memory": True, "qtype": "qfloat8_e4m3fn"}, "qfloat8", "float8"),
        ({"quantize_te": True, "qtype_te": "qfloat8_e4m3fn"}, "none", "qfloat8"),
    ],
)
def test_quantisation_of_a_model_with_a_type_for_its_encoder(section, denoiser, encoder):
    assert model_of({"arch": "omnigen2"} | section).quantization == {"denoiser": denoiser, "encoder": encoder}


@pytest.mark.parametrize(
    ("arch", "version", "encoder"),
    [
        ("lumina2", "0.12.26", "uint4"), ("lumina2", "0.13.19", "uint4"), ("lumina2", "", "uint4"),
        ("flux2", "0.12.26", "uint4"), ("flux2", "0.9.14", "uint4"), ("flux2", "0.13.5", "qint8"),
        ("flux2_klein_4b", "0.12.26", "qint8"), ("omnigen2", "0.12.26", "qint8"),
    ],
)  # fmt: skip
def test_the_encoder_takes_the_key_of_its_model_and_version(arch, version, encoder):
    section = {"arch": arch, "quantize": True, "qtype": "uint4", "qtype_te": "qint8"}
    assert model_of(section, version).quantization["encoder"] == encoder


@pytest.mark.parametrize("version", ["", "0.13.0", "mine"])
def test_a_version_that_does_not_tell_the_encoder_s_type_is_said(version):
    section = {"name_or_path": "a/b", "arch": "flux2", "quantize": True, "qtype": "uint4", "qtype_te": "qint8"}
    model, notes = read_model({"model": section, "train": {"dtype": "bf16"}}, version)
    assert model.quantization["encoder"] == "qint8"
    assert "'uint4'" in notes[0]
    assert "'qint8'" in notes[0]
    same, silent = read_model({"model": section | {"qtype_te": "uint4"}, "train": {"dtype": "bf16"}}, version)
    assert (same.quantization["encoder"], silent) == ("uint4", ())


def test_a_training_adapter_makes_quanto_s_float8_torchao_s():
    adapter = {"assistant_lora_path": "ostris/a/adapter.safetensors", "quantize": True}
    model = model_of({"arch": "zimage:turbo"} | adapter)
    assert model.quantization == {"denoiser": "float8", "encoder": "qfloat8"}
    assert wanted_model(model).training_adapter == "ostris/a/adapter.safetensors"
    assert model_of({"arch": "omnigen2"} | adapter).quantization["denoiser"] == "qfloat8"
    written = {"arch": "zimage:turbo", "qtype": "qfloat8_e4m3fn"} | adapter
    assert model_of(written).quantization["denoiser"] == "qfloat8"
    assert model_of({"arch": "zimage:turbo", "qtype": "uint4"} | adapter).quantization["denoiser"] == "uint4"
    assert model_of({"arch": "zimage:turbo"} | adapter | {"quantize": False}).quantization["denoiser"] == "none"


# AI Toolkit's types of weights: toolkit/util/quantize.py get_qtype, which adds optimum-quanto's and its own backends'
FOLLOWED = {
    **{f"uint{bits}": f"uint{bits}" for bits in range(2, 8)},
    **{name: name for name in ("float8", "int8", "qfloat8", "qint8", "qint4", "qint2")},
    **{name: name for name in ("qfloat8_e5m2", "qfloat8_e4m3fnuz")},
    "qfloat8_e4m3fn": "qfloat8", "uint8": "none",
}  # fmt: skip
NAMED = (
    "orbit2", "orbit3", "orbit4", "orbitvq2", "orbitvq3", "orbitvq4", "convrot4", "convrot8", "convrotbitnet",
    "convrotcomfyw4a4", *(f"convrotint{bits}" for bits in range(2, 9)), "nvfp4",
    # none of its own, at which it stops
    "fp8_e4m3fn", "int4",
)  # fmt: skip


@pytest.mark.parametrize("qtype", [*FOLLOWED, *NAMED])
def test_every_type_of_ai_toolkit_is_followed_or_named(qtype):
    section = {"arch": "zimage", "quantize": True, "quantize_te": False, "qtype": qtype}
    wanted = wanted_model(model_of(section))
    assert wanted.options.transformer_quantization == FOLLOWED.get(qtype, "none")
    if qtype in FOLLOWED:
        assert wanted.problems == ()
    else:
        assert wanted.problems == (f"The job's denoiser was quantised to '{qtype}', which this pack does not have.",)


@pytest.mark.parametrize("qtype", [*FOLLOWED, *NAMED])
def test_a_recovery_adapter_s_type_is_followed_or_named(qtype):
    section = {"arch": "zimage", "quantize": True, "quantize_te": False, "qtype": f"{qtype}|a/b/c.safetensors"}
    wanted = wanted_model(model_of(section))
    assert wanted.recovery_adapter == "a/b/c.safetensors"
    assert wanted.recovery_type == ("qfloat8" if qtype == "qfloat8_e4m3fn" else qtype)
    if qtype in RECOVERY_TYPES:
        assert wanted.problems == ()
        assert wanted.options.transformer_quantization == FOLLOWED[qtype]
    elif qtype in FOLLOWED:
        # quanto's, in which AI Toolkit leaves no weight
        (problem,) = wanted.problems
        assert "'a/b/c.safetensors' is on layers in 'q" in problem
        assert "a type at which AI Toolkit stops" in problem
    else:
        assert f"'{qtype}', which this pack does not have" in wanted.problems[0]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"qtype": "uint3|a/b/c|d"}, r"model\.qtype has two '\|', at which AI Toolkit stops: 'a/b/c\|d'"),
        ({"qtype": "uint3|a", "assistant_lora_path": "b"}, "sets both a recovery adapter .* at which AI Toolkit stops"),
        ({"qtype": "uint3", "quantize_te": True, "qtype_te": "uint8"}, "encoder was quantised to 'uint8'"),
    ],
)
def test_what_ai_toolkit_stops_at_or_nothing_tells_is_a_problem(section, problem):
    base = {"arch": "zimage", "quantize": True, "quantize_te": False}
    assert re.search(problem, " ".join(wanted_model(model_of(base | section)).problems))


def test_where_a_recovery_adapter_is_read():
    own = {"qtype": "uint4|/x/ara.safetensors"}
    read = wanted_model(model_of({"arch": "flux2", "quantize": True, "quantize_te": False} | own))
    assert (read.recovery_adapter, read.recovery_type, read.notes) == ("/x/ara.safetensors", "uint4", ())
    apart = {"qtype": "uint4", "accuracy_recovery_adapter": "/x/ara.safetensors", "quantize": True}
    assert wanted_model(model_of({"arch": "zimage"} | apart)).recovery_adapter == "/x/ara.safetensors"
    plain = wanted_model(model_of({"arch": "zimage"} | own))
    assert (plain.recovery_adapter, plain.options.transformer_quantization) == ("", "none")
    assert "which AI Toolkit does not read without model.quantize" in plain.notes[0]
    other = wanted_model(model_of({"arch": "lumina2", "quantize": True} | own))
    assert (other.recovery_adapter, other.options.transformer_quantization) == ("", "uint4")
    assert "which AI Toolkit does not read for Lumina Image 2.0" in other.notes[0]


def test_what_has_to_be_supplied_and_what_this_pack_lacks_is_named():
    section = {
        "arch": "omnigen2", "quantize": True, "qtype": "convrot8|a/ara/b", "vae_path": "a/vae", "te_dtype": "fp16",
        "extras_name_or_path": "a/b", "model_kwargs": {"use_comfy_weights": False}, "lora_path": "",
    }  # fmt: skip
    model = model_of(section)
    assert model.extras == {
        "vae_path": "a/vae", "te_dtype": "fp16", "accuracy_recovery_adapter": "a/ara/b", "use_comfy_weights": "False",
    }  # fmt: skip
    wanted = wanted_model(model)
    assert wanted.elsewhere == {}
    assert "model.vae_path to 'a/vae', which AI Toolkit does not read" in wanted.notes[0]
    assert "'a/ara/b', which this pack does not have" in wanted.notes[1]
    assert (wanted.id, wanted.base, wanted.dtype) == ("omnigen2", "a/b", "bfloat16")
    assert wanted.options.text_encoder_quantization == "qfloat8"
    assert wanted.options.transformer_quantization == "none"
    assert "'convrot8'" in wanted.problems[0]
    assert "'sd1'" in wanted_model(model_of({})).problems[0]


def test_dtypes_are_ai_toolkit_s():
    names = {"fp32": "float32", "float": "float32", "half": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16"}
    assert {name: model_of({}, train={"dtype": name}).dtype for name in names} == names
    assert model_of({}, train={"steps": 1}).dtype == "float32"
    _, notes = read_model({"model": {"name_or_path": "a"}, "train": {"dtype": "e4m3fn"}}, "")
    assert "'e4m3fn'" in notes[0]
