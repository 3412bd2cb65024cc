"""What the documents say is so: examples run, the file tree is the tree, --help is as shown."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minibert
from minibert.kernels.cuda.recipes import missing_compiler

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUILT = ("site-packages", "build")  # folders of what was installed or built
DOCUMENTS = [
    path
    for path in sorted(ROOT.glob("**/*.md"))
    if not any(p.startswith(".") or p in BUILT for p in path.relative_to(ROOT).parts)
] + [ROOT / ".github" / name for name in ("CONTRIBUTING.md", "SECURITY.md")]
SOURCES = [
    path
    for folder in ("minibert", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace("kernels.", "minibert.kernels.")
    for path in SOURCES
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    if name == "minibert.kernels.cuda.ptx" and (reason := missing_compiler()):
        pytest.skip(reason)
    if name == "minibert.scale.haystack":
        pytest.importorskip("haystack")
    if name.startswith("minibert.serve."):
        for needed in ("starlette", "uvicorn"):
            pytest.importorskip(needed, reason="minibert's extra 'serve' is not installed")
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_of_the_documents_runs(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, document.name, "exec"), {})


SESSIONS = [path for path in DOCUMENTS if "```pycon" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("document", SESSIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_sessions_of_the_documents_print_what_they_show(document):
    names, wrong = {}, []
    text = document.read_text(encoding="utf-8")
    for block in re.finditer(r"```pycon\n(.*?)```", text, re.DOTALL):
        line = text[: block.start(1)].count("\n")
        test = doctest.DocTestParser().get_doctest(block[1], names, document.name, None, line)
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, out=wrong.append, clear_globs=False)
        names = test.globs
    assert not wrong, f"{''.join(wrong)}\npython tools/renew_sessions.py {document}"


@pytest.mark.parametrize("folder", [ROOT, ROOT / "tests"], ids=["in the checkout", "elsewhere"])
def test_the_readme_shows_the_answer_that_the_command_gives(folder):
    command, *shown = blocks("text")[0].split("\n", 1)
    question, text = re.findall(r'"([^"]+)"', command)
    done = subprocess.run(
        [sys.executable, "-m", "minibert", "answer", question, text],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
    )
    for line in done.stderr.splitlines():  # the first run on a machine says so
        assert line.startswith("minibert: compiling")
    assert done.stdout == shown[0]


def test_the_file_tree_of_the_readme_is_the_tree():
    shown = set()
    folder = ""
    for line in blocks("tree")[0].splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        shown.add(folder + name if line.startswith(" ") else name)
    skipped = ("__init__.py", "__main__.py", "__pycache__", "py.typed")
    there = {f"{folder}/" for folder in ("minibert", "kernels", "tests", "tools")}
    for folder in ("minibert", "kernels"):
        for path in (ROOT / folder).iterdir():
            if path.name not in skipped and not path.name.startswith("."):
                there.add(f"{folder}/{path.name}" + "/" * path.is_dir())
    assert shown == there


def test_the_file_tree_of_the_tests_is_the_tree():
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    tree = re.findall(r"```tree\n(.*?)```", text, re.DOTALL)[0]
    there = [
        path.name + "/" * path.is_dir()
        for path in (ROOT / "tests").iterdir()
        if path.name not in ("README.md", "__pycache__") and not path.name.startswith(".")
    ]
    assert sorted(line.split()[0] for line in tree.splitlines()) == sorted(there)


def links(text):
    """Where the links and images of a Markdown text lead; code is left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(
        r"^\[[^]]+\]:\s*(\S+)", prose, re.M
    )


def test_the_readme_links_to_the_text_for_beginners_and_else_to_nothing_here():
    """On a package index, links to other files of a clone lead nowhere."""
    assert links("[a](b.md) ![c](d.png) `[e](f)`\n[g]: h") == ["b.md", "d.png", "h"]
    here = [link for link in links(README) if not re.match(r"https://|#", link)]
    assert here == ["minibert/lessons/how-bert-answers.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    for link in links(document.read_text(encoding="utf-8")):
        if not re.match(r"https?://|#", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_are_there(document):
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"\b((?:minibert|kernels|tests|tools)/[\w./-]*[\w/])", text):
        assert (ROOT / name).exists(), name


def test_every_option_of_the_pipeline_and_the_answerer_is_in_the_readme():
    from minibert import Options

    for name in Options.__dataclass_fields__:
        assert name in README, name


def test_the_readme_lists_every_extra_with_its_packages():
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| ([^|]*) \|$", README, re.M)
    listed = {
        name: sorted(brought.replace("`", "").split(", "))
        for names, brought in rows
        for name in re.findall(r"`([\w-]+)`", names)
    }
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = {}
    for name, packages in re.findall(r"^([\w-]+) = \[(.*)\]$", table, re.M):
        extras[name] = []
        for package in re.findall(r'"([^"]*)"', packages):
            ours = re.fullmatch(r"minibert-qa\[(.*)\]", package)
            extras[name] += ours[1].split(",") if ours else [re.match(r"[\w-]+", package)[0]]
    assert listed == {name: sorted(packages) for name, packages in extras.items()}


def test_importing_minibert_loads_neither_numpy_nor_numba():
    code = "import sys, minibert; print([m for m in ('numpy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_can_be_loaded_and_have_docstrings():
    for name in minibert.__all__:
        assert getattr(minibert, name).__doc__, name
    assert set(minibert.__all__) <= set(dir(minibert))
    with pytest.raises(AttributeError, match="no attribute 'pipelin'"):
        _ = minibert.pipelin


def test_no_library_module_uses_assert_or_catches_everything():
    for folder in (ROOT / "minibert", ROOT / "kernels"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not isinstance(node, ast.Assert), path
                if isinstance(node, ast.ExceptHandler):
                    assert node.type is not None, path
