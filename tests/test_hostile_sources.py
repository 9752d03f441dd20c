"""No way of loading that runs code stands in the source, but for the ones that are named here with their reason."""

import ast
import functools
from pathlib import Path

import toughen

SOURCE = Path(toughen.__file__).parent
ALLOWED = {
    # Code that the user names on the command line, FILE.py:FUNCTION.
    ("workflows/user_code.py", "importlib.import_module"),
    ("workflows/user_code.py", "spec.loader.exec_module"),
    # Our own modules and optional libraries, by names that stand in the source.
    ("__init__.py", "import_module"),
    ("export/to_onnx.py", "importlib.import_module"),
    ("models/pretrained/timm_import.py", "importlib.import_module"),
    # `_Loader` is a SafeLoader without tags and aliases.
    ("recipes/text.py", "yaml.load"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "import_module", "importlib.import_module", "exec_module"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.load", "joblib.load"),
    *("cloudpickle.load", "pd.read_pickle", "torch.jit.load", "torch.package.PackageImporter", "dcp.load"),
    *("torch.hub.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"),
    *("os.system", "os.popen", "runpy.run_path", "shutil.unpack_archive", "extractall", "extract", "load_library"),
    *("torch.distributed.checkpoint.load", "torch.utils.model_zoo.load_url", "torch.serialization.add_safe_globals"),
}


def name_of(function: ast.expr) -> str:
    """`torch.load` of `torch.load(...)`."""
    return ast.unparse(function)


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    return [
        (path.relative_to(SOURCE).as_posix(), name_of(node.func), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def keyword(call: ast.Call, name: str) -> object:
    """The value of a keyword, where it is written out."""
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def test_nothing_loads_code_but_what_the_user_names():
    found = {
        (path, name) for path, name, _ in calls() if name in CALLS or name.rpartition(".")[2] in CALLS - {"compile"}
    }
    # A model's own eval() is a mode, and so are its compiled forms.
    found = {(path, name) for path, name in found if not name.endswith((".eval", ".compile"))}
    assert found == ALLOWED


def test_names_that_are_imported_stand_in_the_source():
    # Of the two that take a variable, one is the user's own FILE.py:FUNCTION.
    for path, name, call in calls():
        if name.endswith("import_module") and path not in (
            "workflows/user_code.py",
            "models/pretrained/timm_import.py",
        ):
            fixed = [isinstance(part, ast.Constant) or ast.unparse(part).startswith(("_HOMES", "f'toughen."))
                     for part in call.args]  # fmt: skip
            assert all(fixed), (path, ast.unparse(call))


def test_torch_loads_weights_alone():
    found = [(path, call) for path, name, call in calls() if name == "torch.load"]
    assert found
    for path, call in found:
        assert keyword(call, "weights_only") is True, path
        assert not {"pickle_module", "pickle_load_args"} & {k.arg for k in call.keywords}, path


def test_numpy_loads_no_objects():
    for path, name, call in calls():
        if name in ("np.load", "numpy.load", "np.lib.format.read_array"):
            ours = "mnist5k.npz" in (SOURCE / path).read_text() and path == "data/sources/registry.py"
            assert keyword(call, "allow_pickle") is False or ours, path
        assert keyword(call, "allow_pickle") is not True, path


def test_the_unpickler_is_the_one_that_builds_arrays():
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(n.name in ("pickle", "dill", "marshal", "shelve") for n in node.names)
    }
    # The one in models only catches its error.
    assert users == {"data/sources/cifar_pickle.py", "models/pretrained/files.py"}
    assert all(name in ("pickle._Unpickler",) or not name.startswith("pickle.") for _, name, _ in calls())
