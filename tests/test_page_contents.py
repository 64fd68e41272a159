"""Every page of the repository: its commands exist, its Python runs, its TOML is read.

Commands are not run but given to the parsers of what they name; Python in ```python blocks is run unless it runs
studies, in an empty folder for each page; a complete problem.toml is loaded where the page has written its files.
"""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

import sibcl_ray as sr
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.tabulated import declaration, load

try:
    from sibcl_ray.cli.main import app
except ImportError:
    from sibcl_ray.cli import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "cluster", "sibcl_ray", "studies", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *chain.from_iterable((ROOT / folder).rglob("*.md") for folder in FOLDERS)])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

COMMAND = get_command(app)
SUBCOMMANDS = getattr(COMMAND, "commands", {})
SWEEP = SUBCOMMANDS.get("sweep", COMMAND)
SHELL = ("", "sh", "bash", "console")
RUNS = re.compile(r"\b(run|load_results|load_model)\(|pip install")  # Python that is only compiled


@dataclass(frozen=True)
class Block:
    """Code of a page, with the language that its fence names; of indented code it is empty."""

    language: str
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    fence, start, lines = None, 0, []
    for number, line in enumerate([*text.split("\n"), "end"], 1):
        indented, bare = line.startswith("    "), line.strip()
        if fence is None and lines and bare and not indented:
            yield Block("", "\n".join(lines).strip() + "\n", start)
            lines = []
        if fence is None and (opened := re.fullmatch(r"```(\w*)", bare)):
            fence, start, lines = opened[1], number + 1, []
        elif fence is not None and bare == "```":
            yield Block(fence, "\n".join(lines) + "\n", start)
            fence, lines = None, []
        elif fence is not None or indented or lines:
            start = start if lines else number
            lines.append(line if fence is not None else line[4:])


def without_code(text: str) -> str:
    """The prose of a page, line by line."""
    kept = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    return "\n".join("" if line.startswith("    ") else line for line in kept.split("\n"))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in blocks for a shell and in inline code."""
    lines = chain.from_iterable(
        block.text.replace("\\\n", " ").split("\n") for block in blocks(text) if block.language in SHELL
    )
    inline = re.findall(r"`((?:sibcl-ray|python|\.venv/bin/\w+|ray job submit)\s[^`]+)`", without_code(text))
    for line in chain(lines, (" ".join(code.split()) for code in inline)):
        for part in re.split(r"&&|;|\|", line):
            try:
                yield shlex.split(part, comments=True)
            except ValueError:  # no command, or one of several lines
                yield part.split()


def faults(words: list[str]) -> Iterator[str]:
    """What of a command does not exist: a script, an option, a value."""
    paths = [place for place, word in enumerate(words) if re.fullmatch(r"(studies|benchmarks|tests)/[\w/]+\.py", word)]
    modules = [
        place + 1 for place, word in enumerate(words) if word == "-m" and words[place + 1].startswith("studies.")
    ]
    if "sibcl-ray" in words:
        name, *arguments = words[words.index("sibcl-ray") + 1 :] or [""]
        if SUBCOMMANDS and not name.startswith("-"):
            yield from [f"there is no subcommand {name}"] * (name not in SUBCOMMANDS)
            yield from misread(SUBCOMMANDS.get(name, COMMAND), arguments)
    elif paths:
        script, arguments = ROOT / words[paths[0]], words[paths[0] + 1 :]
        if not script.exists():
            yield f"there is no {script}"
        elif script.name == "label_sweep.py":
            yield from misread(SWEEP, arguments)
        else:
            known = script.read_text()
            yield from (f"{script.name} has no {w}" for w in arguments if w[:2] == "--" and f'"{w}"' not in known)
    for place in modules:
        yield from [f"there is no {words[place]}"] * (not (ROOT / f"{words[place].replace('.', '/')}.py").exists())


def misread(command, arguments: list[str]) -> Iterator[str]:
    """Why a command cannot be read; nothing of it is run."""
    given = [word for word in arguments if word not in ("...", "…", "&")]
    context = command.context_class(command)
    try:
        chosen, _, _ = command.make_parser(context).parse_args(given)
        for option in command.params:
            if option.name in chosen and option.callback is None:  # which may read a file
                option.process_value(context, chosen[option.name])
    except Exception as error:
        yield getattr(error, "message", str(error)) or repr(error)
        return
    for name, known in (("scale", sr.recipes.SCALES), ("methods", sr.METHODS), ("problem", PROBLEMS)):
        for value in chosen.get(name, "").split(",") if name in chosen else ():
            file, _, kind = value.partition(":")
            if kind and (ROOT / file).exists():
                yield from [f"there is no {kind} in {file}"] * (f"class {kind}(" not in (ROOT / file).read_text())
            elif not kind and not value.isupper() and value not in (*known, "tabulated"):
                yield f"there is no {name} {value}"


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request):
    return request.param


def test_commands_exist(page):
    found = [(" ".join(words), fault) for words in commands(page.read_text()) for fault in faults(words)]
    assert not found


def test_the_check_of_commands_finds_what_is_wrong():
    wrong = """
Say `python studies/label_sweep.py --scael quick`, or

    python benchmarks/mpb.py --cels 3 && python studies/label_sweep.py \\
        --scale huge
    python studies/none.py --scale quick

```sh
ray job submit -- python studies/label_sweep.py --methods SL,SLI --trials many
python studies/label_sweep.py --problem studies/my_problem.py:Bell
```
"""
    right = wrong.replace("scael", "scale").replace("cels", "cells").replace("huge", "smoke").replace("SLI", "SL-I")
    right = right.replace("many", "3").replace("Bell", "Drum").replace("none.py --scale quick", "my_study.py")
    assert [len([*faults(words)]) for words in commands(wrong) if [*faults(words)]] == [1] * 6
    assert not [fault for words in commands(right) for fault in faults(words)]


def test_python_runs(page, tmp_path, monkeypatch):
    """Blocks of a page share their names; attributes of the package exist also where a study would run."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page.read_text()):
        if block.language == "python":
            code = compile(block.text, f"{page}:{block.line}", "exec")
            for name in re.findall(r"\bsr\.(?:recipes\.)?(\w+)", block.text):
                assert hasattr(sr, name) or hasattr(sr.recipes, name), name
            if not RUNS.search(block.text):
                exec(code, vars(module))
        elif block.language == "toml":
            read_toml(block.text, tmp_path)


def read_toml(text: str, folder: Path) -> None:
    """A problem.toml, which is loaded where its files are, or some of its tables."""
    given = tomllib.loads(text)
    if not set(given) <= set(declaration.Declaration.model_fields):
        return  # it is for something else
    if not {"name", "target"} <= set(given):
        target = {"file": "data.npz", "inputs": "x", "labels": "y"}
        declaration.Declaration.model_validate({"name": "page", "target": target, **given})
        return
    parts = declaration.parse(text.encode()).parts.values()
    if all((folder / part.file).exists() for part in parts):
        (folder / declaration.FILE).write_text(text)
        load(folder)


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def test_an_option_is_explained_in_one_place():
    """Where a row of a table or an item of a list begins with it."""
    found: dict[str, list[str]] = {}
    for page, name in zip(PAGES, NAMES, strict=True):
        for option in re.findall(r"^(?:\| |[-*] )\**`(--[\w-]+)", without_code(page.read_text()), re.M):
            if not re.search(rf"^\| `{option}`.*\n\| ?-", page.read_text(), re.M):  # the head of a table
                found.setdefault(option, []).append(name)
    assert {option: places for option, places in found.items() if len(places) > 1} == {}


# The gallery


GALLERY = ROOT / "sibcl_ray" / "problems" / "README.md"


def test_every_problem_is_in_the_gallery_with_a_small_picture():
    text = GALLERY.read_text()
    for name in PROBLEMS:
        assert f"## {name}\n" in text and f"]({name}.png)" in text, name
        assert (GALLERY.parent / f"{name}.png").stat().st_size < 60_000


def test_the_gallery_has_all_keys_of_a_description_of_arrays():
    """Those that are alternatives stand in comments."""
    complete = max((b.text for b in blocks(GALLERY.read_text()) if b.language == "toml"), key=len)
    shown = tomllib.loads(re.sub(r"^# (\[|\w+ = )", r"\1", complete, flags=re.M))
    for name, field in declaration.Declaration.model_fields.items():
        assert name in shown, name
        if name != "name":
            kind = next(k for k in (*getattr(field.annotation, "__args__", ()), field.annotation) if k is not None)
            assert set(kind.model_fields) == set(shown[name]), name
