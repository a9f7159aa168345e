"""A file may import what stands above it in this list, never what stands below."""

import ast
import subprocess
import sys
from pathlib import Path

import etascope

SOURCE = Path(etascope.__file__).parent
LAYERS = [
    "words",
    "errors",
    "arguments",
    "files",
    "schema",
    "records",
    "tensors",
    "reach",
    "caller",
    "randomness",
    "attributes",
    "data",
    "problems",
    "optim",
    "plan",
    "call",
    "factories",
    "diagnosis",
    "state",
    "environment",
    "inspection",
    "trial",
    "rehearsal",
    "engines",
    "encoding",
    "appending",
    "lock",
    "journal",
    "checkpoints",
    "search",
    "reading",
    "study",
    "training",
    "opening",
    "coordinator",
    "ranging",
    "reporting",
    "commands",
    "cli",
]


def layer_of(module: str) -> str:
    return module.removeprefix("etascope.").split(".")[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("etascope"):
            found.add(layer_of(node.module or ""))
        if isinstance(node, ast.Import):
            found |= {layer_of(a.name) for a in node.names if a.name.startswith("etascope")}
    return found - {"etascope"}


def test_no_file_imports_what_stands_below_it():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        layer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if layer in ("__init__", "__main__"):
            continue
        assert layer in LAYERS, f"{path.name} has no place in the list of layers"
        for other in imports(path):
            if LAYERS.index(other) > LAYERS.index(layer):
                wrong.append(f"{path.relative_to(SOURCE)} imports {other}")
    assert not wrong


def test_reading_a_study_never_imports_what_trains():
    trains = {"trial", "engines", "training", "coordinator", "checkpoints"}
    for name in ("study.py", "search/grid.py", "diagnosis/verdict.py", "journal.py"):
        assert not imports(SOURCE / name) & trains, name


def test_importing_the_package_and_its_command_line_loads_no_torch():
    code = "import sys, etascope.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_opening_a_study_loads_no_torch():
    code = "import sys, etascope; etascope.open_study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had():
    code = "from etascope import *; import etascope as es; assert callable(es.report)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    before = "import etascope.reporting; import etascope as es; assert callable(es.report)"
    assert subprocess.run([sys.executable, "-c", before], check=False).returncode == 0
