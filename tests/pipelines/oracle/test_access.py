"""Who is spoken to and with what: addresses of this machine alone, and a token that no message has in it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.errors import AITKError, FileError, InputError
from comfyui_aitk.pipelines.oracle.access import TOKEN_VARIABLE, find_token, parse_address
from engine_server import TOKEN

HERE = parse_address("http://127.0.0.1:8765")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8765", "http://127.9.9.9:1/", "http://[::1]:80", "http://localhost:8"]
)
def test_this_machine_is_allowed(url):
    assert str(parse_address(url)) == url.rstrip("/").replace("localhost", "127.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.0.4:8765", "http://example.org:80", "http://0.0.0.0:8765", "http://localhost.example.org:80",
        "http://127.1:80", "http://[::]:80", "http://127.0.0.1.nip.io:80", "http://[::ffff:8.8.8.8]:80",
    ],
)  # fmt: skip
def test_another_machine_is_refused_unless_the_user_says_so(url):
    with pytest.raises(InputError, match=r"not this machine.*--oracle-remote"):
        parse_address(url)
    assert parse_address(url, remote=True).port == int(url.rpartition(":")[2])


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:8765/?token={TOKEN}", f"http://user:{TOKEN}@127.0.0.1:80", f"http://127.0.0.1:80/{TOKEN}",
        f"http://127.0.0.1:{TOKEN}", f"ftp://127.0.0.1:80#{TOKEN}", f"{TOKEN}", f"http://127.0.0.1:1 {TOKEN}",
        "http://127.0.0.1", "http://:80", "http://[::1:80", "",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:8765") as raised:
        parse_address(url, remote=True)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


def _file(path: Path, **content: object) -> Path:
    path.write_text(json.dumps({"host": "127.0.0.1", "port": 8765, "token": TOKEN, "pid": 1, **content}))
    return path


def test_the_named_file_comes_before_the_environment_and_that_before_the_jobs_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(InputError, match=f"--oracle-file, or set {TOKEN_VARIABLE}"):
        find_token(HERE, None, tmp_path)
    _file(tmp_path / "engine.json", token="of-the-job-folder")
    assert find_token(HERE, None, tmp_path).header() == "of-the-job-folder"
    # the folder may be anybody's: its token is for this machine alone
    with pytest.raises(InputError, match="Nothing tells the token"):
        find_token(HERE, None, tmp_path, remote=True)
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    assert find_token(HERE, None, tmp_path).header() == "of-the-environment"
    assert find_token(HERE, _file(tmp_path / "other.json"), tmp_path).header() == TOKEN


def test_a_link_out_of_the_jobs_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "engine.json").symlink_to(_file(tmp_path / "engine.json"))
    with pytest.raises(InputError, match="Nothing tells the token"):
        find_token(HERE, None, tmp_path / "job")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"port": 8766}, "port 8766, and --oracle names port 8765"),
        ({"token": None}, "none that can be sent"),
        ({"token": "short"}, "none that can be sent"),
        ({"token": TOKEN + "\r\nX-Other: 1"}, "none that can be sent"),
        ({"token": TOKEN + "\N{SNOWMAN}"}, "none that can be sent"),
    ],
)
def test_a_file_of_another_engine_or_with_a_strange_token_is_refused(tmp_path, content, words):
    with pytest.raises(FileError, match=words) as raised:
        find_token(HERE, _file(tmp_path / "engine.json", **content), tmp_path)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


def test_half_a_file_is_refused_without_its_content(tmp_path):
    path = tmp_path / "engine.json"
    path.write_text(f'{{"token": "{TOKEN}", ')
    with pytest.raises(AITKError, match="none that AI Toolkit's engine writes") as raised:
        find_token(HERE, path, tmp_path)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


def test_the_token_writes_itself_in_no_text(tmp_path):
    token = find_token(HERE, _file(tmp_path / "engine.json"), tmp_path)
    assert TOKEN not in f"{token} {token!r} {[token]} {vars(HERE)}"
    said = {"message": f"bad {TOKEN}!", TOKEN: [1, {"deep": TOKEN}]}
    assert token.hidden_in(said) == {"message": "bad [token]!", "[token]": [1, {"deep": "[token]"}]}
