"""Which mmproj file belongs to a GGUF file of a language model, by their names: as ComfyUI-GGUF finds it, and more."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.containers import write_gguf_tensors
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.weights.beside import Beside, beside, how_to_put

NEED = Beside(lambda _: True, "qwen2.5vl_merger", "Qwen2.5-VL")
SEVEN = "Qwen2.5-VL-7B-Instruct"
# the first file, those that lie beside it, the one that is taken; those that ComfyUI-GGUF takes too, and those that its
# rule leaves alone
AS_COMFYUI_GGUF = {
    "quantised": (f"{SEVEN}-Q4_K_M", [f"{SEVEN}-mmproj-F16"], f"{SEVEN}-mmproj-F16"),
    "behind the word, in other letters": (SEVEN.lower() + "-q8_0", [f"mmproj-{SEVEN}-f16"], f"mmproj-{SEVEN}-f16"),
    "by unsloth": (f"{SEVEN}-UD-Q4_K_XL", [f"{SEVEN}-mmproj-BF16"], f"{SEVEN}-mmproj-BF16"),
    "iq": (f"{SEVEN}-IQ4_XS", [f"{SEVEN}-mmproj-F32"], f"{SEVEN}-mmproj-F32"),
    "dots": (f"{SEVEN}.Q4_K_M", [f"{SEVEN}.mmproj-f16"], f"{SEVEN}.mmproj-f16"),
    "of two, the one with all of the name": (f"{SEVEN}-F16", [f"{SEVEN}-mmproj-BF16", f"mmproj-{SEVEN}-F16"],
                                             f"mmproj-{SEVEN}-F16"),
    "another model's beside it": (f"{SEVEN}-Q4_K_M", ["Qwen2.5-VL-3B-Instruct-mmproj-F16", f"{SEVEN}-mmproj-F16"],
                                  f"{SEVEN}-mmproj-F16"),
}  # fmt: skip
FURTHER = {
    "not quantised": (f"{SEVEN}-BF16", [f"{SEVEN}-mmproj-F16"], f"{SEVEN}-mmproj-F16"),
    "a dot, then a dash": (f"{SEVEN}.Q4_K_M", [f"{SEVEN}-mmproj-f16"], f"{SEVEN}-mmproj-f16"),
}
NONE = {
    "nothing": (f"{SEVEN}-Q4_K_M", []),
    "no name": (f"{SEVEN}-Q4_K_M", ["mmproj-F16"]),
    "another model's": (f"{SEVEN}-Q4_K_M", ["Qwen2.5-VL-3B-Instruct-mmproj-F16"]),
    "no such file": (f"{SEVEN}-Q4_K_M", [f"{SEVEN}-Q8_0"]),
}


def _write(folder: Path, first: str, others: list[str]) -> Path:
    for other in others:
        write_gguf_tensors(folder / f"{other}.gguf", {}, "Q8_0", "clip")
    # neither a container of another kind nor a folder is one
    (folder / f"{first}-mmproj.safetensors").write_bytes(b"")
    (folder / f"{first}-mmproj-folder.gguf").mkdir()
    return write_gguf_tensors(folder / f"{first}.gguf", {}, "Q8_0", "qwen2vl")


@pytest.mark.parametrize("case", AS_COMFYUI_GGUF | FURTHER)
def test_the_file_that_belongs_to_another_is_found(tmp_path, case):
    first, others, expected = (AS_COMFYUI_GGUF | FURTHER)[case]
    found = beside(_write(tmp_path, first, others), "x", NEED)
    assert found == tmp_path / f"{expected}.gguf"


@pytest.mark.parametrize("case", NONE)
def test_none_is_taken_that_does_not_say_whose_it_is(tmp_path, case):
    first, others = NONE[case]
    path = _write(tmp_path, first, others)
    assert beside(path, "x", NEED) is None
    told = how_to_put(path, "Qwen2.5-VL")
    assert f"into the same folder, called like '{SEVEN}-mmproj-F16.gguf'" in told
    lying = [f"{other}.gguf" for other in others if "mmproj" in other]
    assert all(name in told for name in lying) and ("does not say whose it is" in told) == bool(lying)


def test_several_are_an_error_that_names_them(tmp_path):
    path = _write(tmp_path, f"{SEVEN}-Q4_K_M", [f"{SEVEN}-mmproj-{dtype}" for dtype in ("F16", "BF16")])
    with pytest.raises(FileError) as caught:
        beside(path, "x", NEED)
    assert str(caught.value) == (
        "'x' needs the vision tower that belongs to it, and 2 files beside it could be that: "
        f"'{SEVEN}-mmproj-BF16.gguf', '{SEVEN}-mmproj-F16.gguf'. Keep one of them there, and move the others to another"
        " folder."
    )
