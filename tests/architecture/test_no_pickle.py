"""Nothing that is read is executed: who can write to a bucket must not run code on nodes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("checkpoints", "train", "orchestrator")
PICKLING_MODULES = {
    *("pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
}
# By their full names, whatever they were imported as; the last ones pickle for other ranks.
PICKLING_CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "numpy.load", "pandas.read_pickle"),
    *("torch.distributed.all_gather_object", "torch.distributed.gather_object"),
    *("torch.distributed.broadcast_object_list", "torch.distributed.scatter_object_list"),
    *("torch.distributed.send_object_list", "torch.distributed.recv_object_list"),
    # DCP's own reader unpickles .metadata; ours reads a manifest.
    *("torch.distributed.checkpoint.FileSystemReader", "torch.distributed.checkpoint.filesystem"),
    *("torch.distributed.checkpoint.format_utils.dcp_to_torch_save", "torch.hub.load"),
    *("torch.package.PackageImporter", "torch.export.load", "numpy.memmap", "numpy.ma.load"),
}
# What runs text as code, makes objects of any kind, or writes where an archive says.
RUNNING_CALLS = {
    *("eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput"),
    *("subprocess.getstatusoutput", "runpy.run_path", "logging.config.listen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load"),
    *("yaml.unsafe_load_all", "shutil.unpack_archive"),
}
ALLOWED = {
    ("checkpoints/dcp_items.py", "torch.save"): "DCP's planners unpickle what they are handed: "
    "bytes that were made in memory from the manifest's JSON",
    ("train/preemption.py", "torch.distributed.all_gather_object"): "text of one rank for the "
    "other ranks of its attempt, which run the same code; nothing of a store",
    ("orchestrator/spec_file.py", "yaml.load"): "with a subclass of the safe loader",
}


def findings(tree: ast.AST) -> Iterator[str]:
    """Yield what in a module imports pickle under one of its names, or calls what uses it."""
    names = imported_names(tree)
    for name in names.values():
        if name.partition(".")[0] in PICKLING_MODULES:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from pickling_of(node, full_name(node.func, names))


def pickling_of(call: ast.Call, name: str) -> Iterator[str]:
    if name in PICKLING_CALLS | RUNNING_CALLS:
        yield name
    if name.rpartition(".")[2] in ("extractall", "extract") and "." in name:
        yield "extractall"  # of an archive, whose names may leave the folder
    if name in ("importlib.import_module", "__import__"):
        yield from (one.value for one in call.args[:1] if is_pickling_module(one))
    if name.endswith(".recv") and not call.args:
        yield "Connection.recv"  # of multiprocessing; a socket's has an argument
    for keyword in call.keywords:
        risky = {
            "allow_pickle": True,
            "weights_only": False,
            "shell": True,
            "trust_remote_code": True,
        }.get(keyword.arg or "")
        if risky is not None and getattr(keyword.value, "value", risky) == risky:
            yield f"{keyword.arg}={risky}"


def is_pickling_module(node: ast.AST) -> bool:
    name = getattr(node, "value", None)
    return isinstance(name, str) and name.partition(".")[0] in PICKLING_MODULES


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return the full name of everything that the module imports, by the name that it has there."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_nothing_is_unpickled_but_for_the_exceptions_listed_here():
    found = set()
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 50
    for path in paths:
        for what in findings(ast.parse(path.read_text())):
            found.add((path.relative_to(ROOT).as_posix(), what))
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import dill as d",
        "from cloudpickle import loads",
        "def f():\n    from pickle import Unpickler",
        "import torch\ntorch.load(path)",
        "from torch import load as read\nread(path, weights_only=True)",
        "import torch as t\nt.save(x, path)",
        "import numpy as np\nnp.load(path)",
        "import numpy\nnumpy.lib.format.read_array(file, allow_pickle=True)",
        "import numpy\nnumpy.lib.format.read_array(file, allow_pickle=chosen)",
        "load(path, weights_only=False)",
        "import torch.distributed as dist\ndist.broadcast_object_list(values)",
        "connection.recv()",
        "import marshal\nmarshal.loads(x)",
        "import shelve",
        "from joblib import load",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "import torch.distributed.checkpoint as dcp\ndcp.FileSystemReader(path)",
        "import importlib\nimportlib.import_module('pickle')",
        "__import__('dill')",
        "eval(text)",
        "import os\nos.system(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "import tarfile\ntarfile.open(path).extractall()",
    ],
)
def test_every_way_to_unpickle_is_seen(source):
    assert list(findings(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "from numpy import frombuffer\nfrombuffer(b'')",
        "sock.recv(1)",
        "read_array(file, allow_pickle=False)",
        "import json\njson.load(file)",
        "model.eval()",
        "import re\nre.compile(text)",
        "import yaml\nyaml.safe_load(text)",
        "import subprocess\nsubprocess.run(['id'])",
    ],
)
def test_what_does_not_unpickle_is_left_alone(source):
    assert list(findings(ast.parse(source))) == []
