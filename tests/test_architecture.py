"""Imports go one way: a folder imports only from folders below it (docs/design/architecture.md)."""

import ast
import graphlib
import pathlib
import sys

import basisnet_jax

PACKAGE = pathlib.Path(basisnet_jax.__file__).parent
# Folders of the package and modules beside them, the lowest first.
FOLDERS = (
    "errors",
    "ops",
    "host",
    "images",
    "serving",
    "runtime",
    "data",
    "models",
    "weights",
    "training",
    "settings",
    "config",
    "workdir",
    "experiment",
    "inference",
    "export",
    "evaluation",
    "loop",
    "aot",
    "modes",
    "compare",
    "main",
)


def modules():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, ast.parse(path.read_text())


def imported(tree):
    """Every import of a module, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def imported_modules(trees):
    """{module: the modules of the package that it imports}."""
    return {
        name: {target for x in imported(tree) if x and (target := x.removeprefix("basisnet_jax.")) in trees}
        for name, tree in trees.items()
    }


def folder_of(module):
    return module.split(".")[0]


def test_a_folder_imports_only_from_those_below_it():
    for name, targets in imported_modules(dict(modules())).items():
        assert folder_of(name) in FOLDERS, f"give basisnet_jax/{folder_of(name)} a place in FOLDERS"
        for target in targets:
            assert FOLDERS.index(folder_of(target)) <= FOLDERS.index(folder_of(name)), f"{name} imports {target}"


def test_no_module_imports_itself_by_way_of_others():
    """A cycle raises graphlib.CycleError."""
    imports = imported_modules(dict(modules()))
    assert sorted(graphlib.TopologicalSorter(imports).static_order()) == sorted(imports)


def test_ops_models_and_training_never_see_a_config():
    for name, tree in modules():
        if folder_of(name) in ("ops", "models", "training"):
            assert not any("ml_collections" in x or x.endswith("config") for x in imported(tree)), name


def reached(module, trees):
    """The modules that a module imports, directly or by way of others."""
    imports, found = imported_modules(trees), {module}
    while found != (more := found.union(*(imports[name] for name in found))):
        found = more
    return found


def test_serving_needs_numpy_and_litert_alone():
    """And what comes with Python. Image files need OpenCV or Pillow too, imported where a file is named."""
    whole = dict(modules())
    top = {name: ast.Module([node for node in tree.body if is_import(node)], []) for name, tree in whole.items()}
    known = {"numpy", "ai_edge_litert", "basisnet_jax", *sys.stdlib_module_names}
    for trees, more in ((top, set()), (whole, {"cv2", "PIL"})):
        for name in reached("runtime", trees):
            assert {target.split(".")[0] for target in imported(trees[name]) if target} <= known | more, name
    assert not {"images.opencv", "images.pillow"} & reached("runtime", top)


def test_nothing_imports_tensorflow_at_the_top():
    """Data workers import these modules again."""
    for name, tree in modules():
        top = ast.Module([node for node in tree.body if is_import(node)], [])
        for target in imported(top):
            assert target.split(".")[0] != "tensorflow", name
            assert target not in ("clu.metric_writers", "clu.periodic_actions"), name


def test_nothing_that_is_read_can_run():
    """Pickle's names are known to one module, whose overrides tests/weights/test_pretrained.py tries.

    Three modules start a program with fixed arguments: nvidia-smi, npm, and Python with a module of ours.
    """
    exceptions = {
        "weights.torch_file": {"pickle", "pickletools"},
        "host.devices": {"subprocess"},
        "export.browser": {"subprocess"},
        "serving.isolated": {"subprocess"},
    }
    banned = {
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "torch",
        "runpy",
        "subprocess",
        "pickle",
        "pickletools",
    }
    for name, tree in modules():
        allowed = exceptions.get(name, set())
        roots = {target.split(".")[0] for target in imported(tree) if target}
        assert not roots & (banned - allowed), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), (name, called)
                assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"), (name, called)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", (name, called)
