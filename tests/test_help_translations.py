"""Help pages in other languages say what the English ones say today: same parts, names, links and picture.

``web/docs/AITKSampler.md`` is English, ``web/docs/AITKSampler/zh.md`` is Chinese. A translation ends with a comment
that names, as a digest, the English page that it was made from; the editor does not show it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from comfyui_aitk import WEB_DIRECTORY
from comfyui_aitk.headless.translations import digest, languages, translated_texts
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS

DOCS = Path(__file__).resolve().parents[1] / WEB_DIRECTORY / "docs"
PAGES = sorted(DOCS.glob("*/*.md"))
CODE = re.compile(r"`([^`]+)`")
PATTERNS = {
    "codes": CODE,
    "addresses": re.compile(r"\]\(([^)]+)\)"),
    "messages": re.compile(r"^- (\*.+?\*)", re.MULTILINE),
}


def _english(path: Path) -> str:
    return DOCS.joinpath(f"{path.parent.name}.md").read_text("utf-8")


def _shape(text: str) -> list[str]:
    """What each line of a page begins, without those that go on: a heading, a list's item, a table's row."""
    return re.findall(r"^(##?|- |\d+\. |\||!\[)", text, re.MULTILINE)


def test_a_language_has_all_pages_or_none():
    for language in {path.stem for path in PAGES}:
        assert language in languages()
        assert {path.parent.name for path in PAGES if path.stem == language} == NODE_CLASS_MAPPINGS.keys()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_a_translated_page_is_made_from_today_s_english(path):
    of = digest(_english(path))
    assert path.read_text("utf-8").endswith(f"\n\n<!-- of {of} -->\n"), (
        f"translate what changed in {path.parent.name}.md, and end with <!-- of {of} -->"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_a_translated_page_has_the_parts_names_and_links_of_the_english_one(path):
    text, english = path.read_text("utf-8"), _english(path)
    assert text.startswith(f"# {translated_texts(path.stem)[f'{path.parent.name}.display_name']}\n")
    assert _shape(text) == _shape(english)
    for what, pattern in PATTERNS.items():
        # some codes are said twice in one language; labels, which a language translates, hold what it shows
        found, wanted = (
            {" ".join(one.split()) for one in pattern.findall(page) if "→" not in one} for page in (text, english)
        )
        assert found == wanted, what


def test_no_line_goes_on_between_two_characters_of_chinese():
    for path in PAGES:
        # the end of the line would show as a space between them
        assert not re.search(r"[^\x00-\xff]\n[^\x00-\xff]", path.read_text("utf-8")), path
