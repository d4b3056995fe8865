"""Write down what a real TensorRT binding wheel offers: `tensorrt_api.json`, read by the tests.

The wheels load without TensorRT's own libraries, which no package index serves: a library of
empty functions under their names is enough to look at classes and signatures.

    python tests/engines/record_tensorrt_api.py tensorrt-cu13-bindings==10.16.1.11 …

downloads each wheel (pip), and replaces its entry in the JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("tensorrt_api.json")

# What edgelung touches, and the enumerations beside it.
CLASSES = """
    Builder BuilderFlag ComputeCapability ExecutionContextAllocationStrategy IBuilderConfig
    ICudaEngine IExecutionContext IHostMemory ILogger INetworkDefinition IOptimizationProfile
    IRuntimeCache IRuntimeConfig ITensor ITimingCache ILayer LayerType DataType Logger
    NetworkDefinitionCreationFlag OnnxParser ParserError ProfilingVerbosity Runtime
    MemoryPoolType TensorIOMode DynamicShapesKernelSpecializationStrategy
"""
EMPTY = """
    createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
    createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry
    getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""
LOOK = """
import importlib, json, re, sys
trt = importlib.import_module(sys.argv[1])
found = {}
for name in sys.argv[2].split(","):
    cls = getattr(trt, name, None)
    if cls is None:
        continue
    found[name] = members = {}
    for member in dir(cls):
        if member.startswith("_") and member != "__init__":
            continue
        value = getattr(cls, member)
        document = (getattr(value, "__doc__", None) or "") if callable(value) else ""
        # `name(self: T, first: A, second: B = 0) -> R`, one line an overload
        signature = rf"^(?:\\d+\\. )?{member}\\((.*)\\)(?: ->.*)?$"
        members[member] = re.findall(signature, document, re.M)
print(json.dumps(found))
"""


def surface(requirement: str) -> dict[str, dict[str, list[list[str]]]]:
    """Class → member → the parameter names of each overload (none for a property or a word)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*pip, requirement], check=True, stderr=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, folder], check=True)
        (extension,) = folder.glob("tensorrt*_bindings/tensorrt*.so")
        empty = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in EMPTY.split())
        (folder / "empty.c").write_text(empty)
        for library in needed(extension):
            gcc = ["gcc", "-shared", "-fPIC", "empty.c", "-o", library, f"-Wl,-soname,{library}"]
            subprocess.run(gcc, cwd=folder, check=True)
        # Not by way of the package, whose __init__ looks for the libraries that are not there.
        look = [sys.executable, "-c", LOOK, extension.stem, ",".join(CLASSES.split())]
        environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(extension.parent)}
        text = subprocess.run(
            look, env=environment, check=True, capture_output=True, text=True
        ).stdout
    return tidy(json.loads(text))


def needed(extension: Path) -> list[str]:
    """The TensorRT libraries that the binding names."""
    text = subprocess.run(
        ["readelf", "-d", extension], check=True, capture_output=True, text=True
    ).stdout
    return re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)[^\]]+)\]", text)


def tidy(found: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[list[str]]]]:
    """Signatures as lists of parameter names, `name?` where one has a default."""
    return {
        cls: {member: [parameters(text) for text in texts] for member, texts in members.items()}
        for cls, members in found.items()
    }


def parameters(signature: str) -> list[str]:
    """`self: T, flags: int = 0` → ['self', 'flags?']."""
    signature = re.sub(r"<[^<>]*>", "_", signature)
    while "[" in signature:
        signature, before = re.sub(r"\[[^\[\]]*\]", "", signature), signature
        if before == signature:
            break
    parts = [part for part in signature.split(", ") if part]
    return [p.split(":")[0].strip() + ("?" if " = " in p else "") for p in parts]


if __name__ == "__main__":
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for requirement in sys.argv[1:]:
        record[requirement] = surface(requirement)
    RECORD.write_text(json.dumps(record, sort_keys=True) + "\n")
