"""Imports go one way: a module imports only from layers below its own (docs/architecture.md)."""

import ast
import pathlib

import basisnet_jax

PACKAGE = pathlib.Path(basisnet_jax.__file__).parent
LAYERS = [
    {
        *("files", "finite", "recompilation", "account", "errors", "output", "cache", "buckets", "tables", "terminal"),
        *("arguments", "schedule"),
    },
    {"noise", "records"},
    {
        "exit_rule",
        "tflite",
        "models.pallas_tpu",
        "models.backbones",
        "models.taps",
        "models.ablations",
        "data.exif",
        "data.augment",
        "data.glyph_fonts",
        "data.glyph_render",
    },
    {
        *("plotting", "mixing", "distributed", "hlo", "published", "calibration", "data.decode"),
        *("models.pallas_depthwise", "models.pallas_pointwise", "data.glyph_designs"),
    },
    {"manifest"},
    {"runtime"},
    {
        *("models.synthesis", "models.torch_file", "mesh", "topology"),
        *("data.preprocess", "data.folder", "data.digits", "data.glyphs"),
    },
    {"data.prepare_glyphs"},
    {"models.routing", "models.weight_files", "models.weight_names", "allocator", "integrity"},
    {"models.blocks", "models.cost", "data.pipeline", "config", "batch_checks"},
    {"workdir", "config_files", "data.datasets", "data.teacher_logits", "plan", "termination"},
    {"models.basisnet", "figures", "coefficient_figure", "curves"},
    {"models.stages", "models.pretrained"},
    {"losses", "optim", "state"},
    {"metrics", "checkpoint"},
    {"step", "networks", "export.quantization", "export.small_image"},
    {"experiment", "models.folding", "export.litert", "export.stablehlo", "export.onnx"},
    {"evaluate", "report", "divergence", "export.stages", "export.one_image", "export.card"},
    {"predict", "opening", "export.formats"},
    {"export.checks"},
    {"exporting"},
    {"train", "costing", "teacher", "compiling", "compare", "evaluation", "evaluation_summary", "specializing"},
    {"main"},
]


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


def test_imports_go_one_way():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name, tree in modules():
        assert name in level, f"give basisnet_jax.{name} a layer in tests/test_architecture.py and docs/architecture.md"
        for target in imported(tree):
            target = target.removeprefix("basisnet_jax.")
            if target in level:
                assert level[target] < level[name], f"{name} must not import {target}"


def test_models_and_losses_never_see_a_config():
    for name, tree in modules():
        if name.startswith("models.") or name in ("losses", "metrics", "optim", "state", "step"):
            assert not any("ml_collections" in x or x.endswith("config") for x in imported(tree)), name


def test_nothing_imports_tensorflow_at_the_top():
    """Data workers import these modules again."""
    for name, tree in modules():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for target in imported(top):
            assert target.split(".")[0] != "tensorflow", name
            assert target not in ("clu.metric_writers", "clu.periodic_actions"), name


def test_nothing_that_is_read_can_run():
    """Pickle's names are known to one module, which overrides what could call anything (tests/test_pretrained.py)."""
    banned = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "runpy", "subprocess"}
    for name, tree in modules():
        allowed = {"pickle", "pickletools"} if name == "models.torch_file" else set()
        roots = {target.split(".")[0] for target in imported(tree) if target}
        assert not roots & ({*banned, "pickle", "pickletools"} - allowed), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), (name, called)
                assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"), (name, called)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", (name, called)
