"""Every text of the nodes and of the extension is translated, from what it says in English today, with its names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from comfyui_aitk.headless import translations
from comfyui_aitk.headless.translations import Fault, digest, english_texts, find_faults, languages, locales_command

# ComfyUI's codes of them; its pages, up to frontend 1.58, offer no German, and of Portuguese the Brazilian
LANGUAGES = ["de", "es", "fr", "ja", "ko", "pt-BR", "ru", "zh", "zh-TW"]
SEED = "AITKSampler.inputs.seed.tooltip"
QUANTIZATION = "AITKRuntimeOptions.inputs.transformer_quantization"


def test_the_languages_are_those_of_the_pack():
    assert languages() == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_missing_or_stale(language):
    """What to do where this fails: CONTRIBUTING.md, "A translation"."""
    english = english_texts()
    faults = find_faults(english, translations.translated_texts(language), translations.made_from(language))
    assert faults == [], "\n".join(f"{fault.key}: {fault.what}" for fault in faults)


def test_every_text_of_a_node_has_a_key():
    keys = english_texts().keys()
    assert SEED in keys
    assert f"{QUANTIZATION}.name" in keys
    assert {"AITKSampler.display_name", "AITKSampler.description", "AITKSampler.outputs.6.tooltip"} <= keys
    # what the page shows, which is not the input's name
    assert english_texts()[f"{QUANTIZATION}.name"].words == "transformer as"


@pytest.mark.parametrize(
    ("key", "old", "new", "what"),
    [
        (SEED, "CPU", "处理器", "lacks CPU"),
        (SEED, "AI Toolkit", "该工具", "lacks AI Toolkit"),
        ("AITKReplayPreviews.inputs.strengths.tooltip", "1.0 旁边", "1,0 旁边", "other numbers than in English"),
        (f"{QUANTIZATION}.tooltip", "model default", "模型默认", "lacks model default"),
        (f"{QUANTIZATION}.tooltip", "'qtype'", "量化", "lacks qtype"),
        ("AITKSampler.inputs.recipe_options.tooltip", "AITK 配方选项", "配方节点", "lacks AITK 配方选项"),
        ("AITKSampler.inputs.prompt.tooltip", "触发词", "触发", "lacks 触发词"),
        ("LoadAITKModel.inputs.repo_id.tooltip", "owner/name", "所有者/名称", "lacks owner/name"),
        ("AITKSampler.outputs.0.tooltip", "渲染的图像。", "The pictures.", "not translated"),
        ("aitk.card.maybe", "{model}", "{modell}", "other places for values than in English"),
        ("aitk.card.maybe", "可能适合", "可能@适合", "has @, which the page does not show as it is"),
        ("aitk.picture.noGraph", "AITK 保存图像", "该节点", "lacks AITK 保存图像"),
        ("aitk.unused.scale", "引导强度", "强度", "lacks 引导强度"),
        ("commands.AITK_OpenPicture.label", "(AITK)", "", "lacks AITK"),
        ("AITKSampler.outputs.0.tooltip", "图像", "{图像}", "has {, which the page does not show as it is"),
    ],
)
def test_what_is_lost_in_a_translation_is_found(key, old, new, what):
    texts = translations.translated_texts("zh")
    assert old in texts[key]
    assert Fault(key, what) in _faults(texts | {key: texts[key].replace(old, new)})


def test_a_label_leaves_room_for_its_list():
    key = f"{QUANTIZATION}.name"
    (fault,) = _faults(translations.translated_texts("zh") | {key: "Transformer 以什么形式存储"})
    assert fault == Fault(key, "26 columns wide: a list's label has room for 22")


def test_the_page_shows_commands_and_menu_entries_by_the_same_words():
    english = english_texts()["commands.AITK_OpenPicture.label"].words
    for language in LANGUAGES:
        texts = translations.translated_texts(language)
        assert texts[f"menuLabels.{english}"] == texts["commands.AITK_OpenPicture.label"]


def test_a_text_without_its_counterpart_is_found():
    texts = translations.translated_texts("zh")
    del texts[SEED], texts["aitk.size.list"]
    left_over = ("AITKSampler.inputs.sampler.name", "aitk.size.lists")
    assert _faults(texts | dict.fromkeys(left_over, "采样器")) == [
        *(Fault(key, "left over: nothing has such a text") for key in left_over),
        Fault(SEED, "missing"),
        Fault("aitk.size.list", "missing"),
    ]


def test_a_changed_tooltip_fails_until_its_translation_is_renewed(tmp_path, monkeypatch, capsys):
    english = english_texts()
    english[SEED] = replace(english[SEED], words=english[SEED].words + " As in AI Toolkit.")
    monkeypatch.setattr(translations, "english_texts", lambda: english)
    monkeypatch.setattr(translations, "SOURCES", tmp_path / "sources.json")
    before = translations.LOCALES / "sources.json"
    translations.SOURCES.write_bytes(before.read_bytes())
    assert locales_command(["--language", "zh"]) == 1
    assert f"zh {SEED}: older than its English text\n    en: One seed," in capsys.readouterr().out
    assert locales_command(["--language", "zh", "--renewed", SEED]) == 0
    # of one language alone, and of one text
    recorded = json.loads(translations.SOURCES.read_text("utf-8"))
    was = json.loads(before.read_text("utf-8"))
    was[SEED]["zh"] = digest(english[SEED].words)
    assert recorded == was
    assert locales_command(["--renewed", "AITKSampler.inputs.sneed.*"]) == 1
    assert "No text has the key AITKSampler.inputs.sneed.*" in capsys.readouterr().err
    assert locales_command(["--language", "tlh"]) == 1
    assert "There is no locales/tlh. Languages:" in capsys.readouterr().err


def _faults(texts: dict[str, str]) -> list[Fault]:
    return find_faults(english_texts(), texts, translations.made_from("zh"))
