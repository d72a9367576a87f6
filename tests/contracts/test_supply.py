"""What comes from others: pinned to the version, declared where it is used, and never run out of a file of a model."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import imports
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((imports.REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: Installed beside the lock, on machines that have CUDA: its wheel is of no use elsewhere.
NOT_LOCKED = {"xformers"}
FOLDERS = ("perfusion", "tasks", "flows", "benchmarks")
FILES = [file for folder in FOLDERS for file in sorted((imports.REPOSITORY / folder).rglob("*.py"))]
OWN = {*FOLDERS, "tests", "__main__"}


def locked() -> dict[str, str]:
    """Canonical name -> version, for every line of the lock."""
    lines = (imports.REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin}: a lock says =="
        assert "*" not in specifier.version, f"{pin}: a lock says one version"
        assert canonicalize_name(pin.name) not in found, f"{pin}: stands twice"
        found[canonicalize_name(pin.name)] = specifier.version
    return found


LOCKED = locked()
DECLARED = [
    (where, Requirement(text))
    for where, texts in {"dependencies": PROJECT["dependencies"], **EXTRAS}.items()
    for text in texts
]


@pytest.mark.parametrize(("where", "needed"), DECLARED, ids=[f"{where}-{needed.name}" for where, needed in DECLARED])
def test_what_is_declared_is_locked(where: str, needed: Requirement) -> None:
    name = canonicalize_name(needed.name)
    if name in NOT_LOCKED:
        assert [specifier.operator for specifier in needed.specifier] == ["=="]
        return
    assert name in LOCKED, f"{needed} of {where} has no line in requirements.lock: install it, then `make lock`"
    assert LOCKED[name] in needed.specifier, f"{needed} of {where} is locked at {LOCKED[name]}"


@pytest.mark.parametrize(("where", "needed"), DECLARED, ids=[f"{where}-{needed.name}" for where, needed in DECLARED])
def test_what_is_declared_has_one_version(where: str, needed: Requirement) -> None:
    """But for two, which Prefect needs below a version and the lock pins (docs/decisions.md)."""
    if needed.name in ("fastapi", "sqlalchemy"):
        return
    assert [specifier.operator for specifier in needed.specifier] == ["=="], f"{needed} of {where} is not pinned"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(imports.REPOSITORY)))
def test_what_is_imported_is_declared(file: Path) -> None:
    """A module of a package that only another package asked for goes when that one changes its mind."""
    roots = {name.split(".")[0] for name in imports.imported(file)} - OWN - set(sys.stdlib_module_names)
    provided = _distributions()
    undeclared = {root for root in roots if not provided.get(root, {canonicalize_name(root)}) & _declared()}
    assert not undeclared, f"{file}: declare in pyproject.toml what gives {', '.join(sorted(undeclared))}"


def _declared() -> set[str]:
    return {canonicalize_name(needed.name) for _, needed in DECLARED}


@cache
def _distributions() -> dict[str, set[str]]:
    """Importable name -> packages that give it, as far as they are installed."""
    return {name: {canonicalize_name(one) for one in given} for name, given in packages_distributions().items()}


# -- nothing is run out of a file ------------------------------------------------------------------------------------

#: Calls that may run what a file holds; the words are what has to be said for them to be safe.
UNPICKLERS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "pandas.read_pickle", "pd.read_pickle",
    "torch.jit.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "eval", "exec",
    "shutil.unpack_archive", "zipfile.ZipFile", "tarfile.open",
}  # fmt: skip
#: The one loader of YAML with a class of its own, which is a yaml.SafeLoader.
SAFE_YAML = {"_OnceLoader", "yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader"}


def dangers(source: str) -> list[str]:
    """What in a module might run code out of a file, a line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if why := _danger(name, words, [ast.unparse(value) for value in node.args]):
                found.append(f"line {node.lineno}: {why}")
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "dill", "joblib", "marshal"):
            found.append(f"line {node.lineno}: from {node.module} import: say {node.module}.name where it is used")
    return found


def _danger(name: str, words: dict[str | None, str], arguments: list[str]) -> str:
    if name in UNPICKLERS:
        return name
    if name == "torch.load" and words.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and (words.get("allow_pickle", "False") != "False" or len(arguments) > 2):
        return "numpy.load with pickles"
    if name == "yaml.load" and not SAFE_YAML & {words.get("Loader", ""), *arguments[1:2]}:
        return "yaml.load without a safe loader"
    if words.get("trust_remote_code", "False") != "False":
        return f"{name} with trust_remote_code"
    automatic = name.rpartition(".")[0].rpartition(".")[2]
    if (
        re.fullmatch(r"Auto[A-Z]\w+", automatic)
        and name.endswith(".from_pretrained")
        and "trust_remote_code" not in words
    ):
        return f"{name} without trust_remote_code=False: transformers would ask on the terminal"
    if name in ("pickle.dump", "pickle.dumps", "joblib.dump", "cloudpickle.dump"):
        return f"{name}: what is written so can only be read so"
    return ""


#: Pickles go between the processes of one run, over a port of its own; no file is read.
BETWEEN_PROCESSES = imports.REPOSITORY / "tasks" / "fanout.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(imports.REPOSITORY)))
def test_no_module_runs_what_a_file_holds(file: Path) -> None:
    found = dangers(file.read_text())
    if file == BETWEEN_PROCESSES:
        assert all("pickle.loads" in danger or "pickle.dumps" in danger for danger in found)
        assert "open(" not in file.read_text()
    else:
        assert not found


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)", "x = pickle.loads(data)", "joblib.load('m')", "torch.load(path)", "pd.read_pickle(path)",
        "torch.load(path, weights_only=False)", "torch.load(path, 'cpu')", "np.load(path, allow_pickle=True)",
        "np.load(path, None, True)", "yaml.load(text)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)",
        "from pickle import loads", "tarfile.open(path)", "shutil.unpack_archive(path)", "eval(text)",
        "AutoTokenizer.from_pretrained(path)", "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "transformers.AutoConfig.from_pretrained(path)", "pickle.dump(model, file)",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_is_for(source: str) -> None:
    assert len(dangers(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, 'cpu', weights_only=True)", "np.load(path, mmap_mode='r')", "model.eval()",
        "yaml.load(text, _OnceLoader)", "yaml.safe_load(text)", "pickle.UnpicklingError",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)", "PerFusionRM.from_pretrained(path)",
    ],
)  # fmt: skip
def test_the_rule_lets_safe_readers_pass(source: str) -> None:
    assert dangers(source) == []
