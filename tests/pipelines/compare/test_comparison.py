"""Each verdict on pictures of recorded training jobs, and what it must never claim."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.pipelines.compare.comparison import Verdict, compare, compare_as, compare_with_file, summary
from comfyui_aitk.pipelines.compare.floor import Rendering
from comfyui_aitk.pipelines.compare.pixels import encoded, read_picture
from comfyui_aitk.pipelines.errors import FileError, InputError
from PIL import Image

JOBS = Path(__file__).resolve().parents[2] / "golden" / "jobs"
PICTURE = Image.new("RGB", (8, 8), (10, 200, 30))


def preview(job: str, step: int, index: int) -> Path:
    """The trainer's file."""
    (file,) = (JOBS / job / "samples").glob(f"*__{step:09}_{index}.*")
    return file


def replayed(job: str, step: int, index: int) -> np.ndarray:
    """What the trainer's own code renders from the saved LoRA."""
    return read_picture(JOBS / "replayed" / job / f"{step:09}_{index}.png").pixels


def noisy(picture: np.ndarray, levels: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (picture.astype(int) + random.integers(-levels, levels + 1, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("job", ["lumina2_jpg", "omnigen2_control", "lumina2_bf16"])
def test_ours_is_encoded_as_the_trainer_does(job):
    """To the byte where Pillow and its libraries are the recording's; the pixels of a PNG anywhere."""
    ours, file = replayed(job, 0, 1), preview(job, 0, 1)
    found = compare_with_file(ours, file)
    assert (found.verdict, found.identical_bytes) == (Verdict.IDENTICAL, True)
    assert found.words == "Identical, byte for byte."
    assert math.isinf(found.difference.psnr)
    assert not found.heat_map.any()


def test_jpeg_alone_changes_a_picture():
    ours, decoded = replayed("lumina2_jpg", 0, 1), read_picture(preview("lumina2_jpg", 0, 1)).pixels
    assert compare(ours, decoded).verdict is Verdict.SAME_PICTURE
    assert compare_as(ours, decoded, "jpg").verdict is Verdict.IDENTICAL


def test_equal_pixels_of_other_bytes_are_said_so(tmp_path):
    ours = replayed("lumina2_jpg", 0, 0)
    Image.fromarray(ours).save(tmp_path / "a.png", compress_level=1)
    found = compare_with_file(ours, tmp_path / "a.png")
    assert (found.verdict, found.identical_bytes) == (Verdict.IDENTICAL, False)
    assert "bytes are not the same" in found.words


def test_a_saved_lora_of_16_bits_gives_the_same_picture_with_amounts():
    found = compare_with_file(replayed("lumina2_jpg", 250, 2), preview("lumina2_jpg", 250, 2))
    assert found.verdict is Verdict.SAME_PICTURE
    assert 0.999 < found.difference.agreement < 1
    assert f"at most {found.difference.maximum} levels" in found.words
    assert "was not measured" in found.words


def test_kernel_noise_is_claimed_only_up_to_the_measured_floor():
    """The saved bfloat16 LoRA differs by as much as kernels do in bfloat16: 5 to 9 levels on half of the values."""
    ours, trainer = replayed("lumina2_bf16", 250, 0), read_picture(preview("lumina2_bf16", 250, 0)).pixels
    assert compare(ours, trainer).verdict is Verdict.SAME_PICTURE, "no floor, no such claim"
    as_much = compare_as(ours, trainer, "png", noisy(ours, 4))
    assert as_much.verdict is Verdict.KERNEL_NOISE
    assert "(those of the given floor) ours differs from itself by at most 4 levels" in as_much.words
    assert "cannot be told from kernels" in as_much.words
    less = compare_as(ours, trainer, "png", noisy(ours, 1))
    assert less.verdict is Verdict.SAME_PICTURE
    assert "change less: with them ours differs from itself by at most 1 level" in less.words
    none = compare_as(ours, trainer, "png", ours)
    assert none.verdict is Verdict.SAME_PICTURE
    assert "The other kernels that were tried (those of the given floor) change nothing." in none.words


def test_kernels_are_tried_until_some_explain_the_difference():
    ours, file = replayed("lumina2_bf16", 250, 0), preview("lumina2_bf16", 250, 0)
    asked = []

    def others(*levels: int | None):
        for one in levels:
            asked.append(one)
            name = f"kernels {one}"
            yield Rendering(name, None, "no room.") if one is None else Rendering(name, noisy(ours, one))

    found = compare_with_file(ours, file, others(0, 1, 4, 9))
    assert (found.verdict, asked) == (Verdict.KERNEL_NOISE, [0, 1, 4])
    assert found.floor.kernels == "kernels 4"
    assert [one["kernels"] for one in found.as_json()["floors"]] == ["kernels 0", "kernels 1", "kernels 4"]
    asked.clear()
    none = compare_with_file(ours, file, others(2, None, 1))
    assert (none.verdict, asked) == (Verdict.SAME_PICTURE, [2, None, 1])
    assert "The other kernels that were tried (kernels 2; kernels 1) change less" in none.words
    assert none.words.endswith(", kernels 2. Not tried: kernels None; no room.")
    assert none.as_json()["floor"]["maximum"] == 2
    unmeasured = compare_with_file(ours, file, others(None))
    assert "Whether kernels alone explain it was not measured. Not tried: kernels None; no room." in unmeasured.words
    asked.clear()
    # neither needs one
    assert compare_with_file(replayed("lumina2_bf16", 0, 0), preview("lumina2_bf16", 0, 0), others(4)).floors == ()
    assert compare_with_file(ours, preview("lumina2_bf16", 0, 1), others(4)).verdict is Verdict.DIFFERENT
    assert asked == []


def test_one_large_difference_is_no_kernel_noise():
    ours = replayed("lumina2_bf16", 0, 0)
    floor, spot = noisy(ours, 8, seed=1), noisy(ours, 1)
    spot[0, 0] ^= 0x80
    assert compare_as(ours, noisy(ours, 8), "png", floor).verdict is Verdict.KERNEL_NOISE
    found = compare_as(ours, spot, "png", floor)
    assert found.difference.mean_square < found.floor.difference.mean_square
    assert found.verdict is Verdict.SAME_PICTURE
    # nor is a difference everywhere, where kernels changed one row
    row = ours.copy()
    row[0] = floor[0]
    assert compare_as(ours, noisy(ours, 8), "png", row).verdict is Verdict.SAME_PICTURE


def test_a_floor_that_is_another_picture_is_refused():
    ours, other = (read_picture(preview("lumina2_bf16", 0, index)).pixels for index in (0, 1))
    with pytest.raises(InputError, match="The floor is another picture than ours"):
        compare_as(ours, ours, "png", other)
    with pytest.raises(InputError, match="The floor is 64 x 32 pixels, and our picture 64 x 64"):
        compare_as(ours, ours, "png", ours[:32])
    # one of our own ends no replay
    found = compare(ours, noisy(ours, 1), [Rendering("kernels", other)])
    assert "Not tried: kernels; The floor is another picture than ours" in found.words


@pytest.mark.parametrize(
    ("job", "index"), [("lumina2_bf16", 1), ("lumina2_te_qfloat8", 1), ("flux2_control", 2), ("omnigen2_control", 1)]
)
def test_another_seed_is_different_and_the_base_alone_is_not(job, index):
    """The line of 0.9 lies between what was measured of both."""
    own = read_picture(preview(job, 600, 0)).pixels
    other = compare(own, read_picture(preview(job, 600, index)).pixels)
    assert other.verdict is Verdict.DIFFERENT
    assert other.difference.agreement < 0.75
    assert "do not agree" in other.words
    base = compare(own, read_picture(preview(job, 0, 0)).pixels)
    assert base.verdict is Verdict.SAME_PICTURE
    assert base.difference.agreement > 0.97


def test_other_sizes_are_different_in_words():
    found = compare(np.zeros((64, 96, 3), np.uint8), np.zeros((64, 64, 3), np.uint8))
    assert found.verdict is Verdict.DIFFERENT
    assert found.difference is found.heat_map is None
    assert found.words == "Different sizes: ours is 96 x 64 pixels, the trainer's 64 x 64."
    assert found.caption == "other size"


def test_a_comparison_is_json_and_a_summary_names_the_farthest():
    ours = replayed("lumina2_bf16", 0, 0)
    found = [compare(ours, ours), compare(ours, noisy(ours, 9)), compare(ours, noisy(ours, 1))]
    stored = json.loads(json.dumps([one.as_json() for one in found], allow_nan=False))
    assert stored[0]["difference"]["psnr"] is None
    assert stored[1]["difference"]["maximum"] == 9
    assert "3 pictures: 1 identical; 2 same picture" in summary(found)
    assert "The farthest, picture 2: Same picture, different by at most 9 levels" in summary(found)
    assert summary(found[:1]) == "Identical pixels."


def stored(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "is no picture that Pillow can read"),
        (stored(PICTURE, "BMP"), "is a 'BMP' picture"),
        (stored(PICTURE.resize((300, 300)), "JPEG")[:900], "cannot be decoded"),
        (stored(PICTURE, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8))]), "is an animation"),
    ],
    ids=["text", "bmp", "cut off", "animation"],
)
def test_a_file_that_is_no_preview_is_refused(content, message, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(FileError, match=f"'x.png' {message}"):
        read_picture(tmp_path / "x.png")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileError, match=r"'gone.png' cannot be read: No such file"):
        read_picture(tmp_path / "gone.png")


def test_the_content_tells_the_format_and_transparency_is_noted(tmp_path):
    (tmp_path / "a.png").write_bytes(stored(PICTURE, "JPEG"))
    assert read_picture(tmp_path / "a.png").format == "jpg"
    clear = PICTURE.convert("RGBA")
    clear.putalpha(0)
    (tmp_path / "b.png").write_bytes(stored(clear, "PNG"))
    found = compare_with_file(np.asarray(PICTURE), tmp_path / "b.png")
    assert found.verdict is Verdict.IDENTICAL
    assert found.notes == ("the transparency of b.png is not compared",)


def test_a_picture_too_large_for_its_format_is_refused():
    with pytest.raises(InputError, match=r"20,000 x 1 pixels cannot be written as webp.*Choose png"):
        encoded(np.zeros((1, 20_000, 3), np.uint8), "webp")
