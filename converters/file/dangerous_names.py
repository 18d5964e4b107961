"""Names that no weights need and that do harm when a file calls them: what a pickle, an archive or a graph is called hostile for.

The lists are facts gathered from picklescan (its unsafe globals) and fickling (its unsafe imports), as they were in November 2026,
less what honest checkpoints hold: `functools.partial`, `pathlib.PosixPath`, `uuid.UUID`, loggers, enums, joblib's own array
wrapper; and less whole modules that a user's own may be named like (code, test, profile). `getattr` alone is in honest pickles too
(an enum, a nested class); with an argument of `TELLING` it is not.
"""

from __future__ import annotations

PROGRAMS = "runs programs"
SYSTEM = "reaches into the system"
CODE = "runs Python code"
LOADS = "loads code or other files"
NETWORK = "reaches the network"
FILES = "reads or writes files"

#: Module -> what its functions do; with everything below it.
MODULES: dict[str, str] = {
    **dict.fromkeys(["os", "posix", "nt", "posixpath", "ntpath"], SYSTEM),
    **dict.fromkeys(
        [
            "subprocess",
            "popen2",
            "pty",
            "multiprocessing",
            "_posixsubprocess",
            "pexpect",
            "pipes",
            "_signal",
            "_osx_support",
            "_aix_support",
            "_pyrepl",
            "webbrowser",
            "antigravity",
            "distutils.spawn",
            "ensurepip",
            "pip",
            "venv",
            "torch.utils.collect_env",
            "torch.utils.cpp_extension",
            "torch.utils.bottleneck",
            "torch._inductor.codecache",
            "torch.distributed.launcher",
            "torch.distributed.run",
            "torch.distributed.elastic",
            "numpy.distutils",
            "numpy.f2py",
        ],
        PROGRAMS,
    ),
    **dict.fromkeys(
        [
            "sys",
            "codeop",
            "bdb",
            "pdb",
            "cProfile",
            "timeit",
            "doctest",
            "marshal",
            "runpy",
            "pydoc",
            "test.support",
            "unittest",
            "idlelib",
            "lib2to3",
            "ctypes",
            "_ctypes",
            "cffi",
            "_interpreters",
            "_xxsubinterpreters",
            "gc",
            "threading",
            "_thread",
            "atexit",
            "asyncio",
            "concurrent.futures",
            "numpy.testing",
            "torch._dynamo.guards",
            "torch.fx.experimental.symbolic_shapes",
            "torch.jit.unsupported_tensor_ops",
            "IPython",
        ],
        CODE,
    ),
    **dict.fromkeys(
        [
            "importlib",
            "_frozen_importlib",
            "_frozen_importlib_external",
            "_imp",
            "imp",
            "pkgutil",
            "zipimport",
            "pickle",
            "_pickle",
            "cPickle",
            "torch.hub",
            "torch.package",
            "numpy.ctypeslib",
        ],
        LOADS,
    ),
    **dict.fromkeys(
        [
            "socket",
            "_socket",
            "ssl",
            "_ssl",
            "http.client",
            "http.server",
            "httplib",
            "urllib.request",
            "urllib2",
            "urllib3",
            "requests",
            "aiohttp",
            "httpx",
            "smtplib",
            "imaplib",
            "ftplib",
            "poplib",
            "telnetlib",
            "nntplib",
            "socketserver",
            "xmlrpc",
            "paramiko",
        ],
        NETWORK,
    ),
    **dict.fromkeys(
        [
            "shutil",
            "tempfile",
            "glob",
            "fileinput",
            "linecache",
            "filecmp",
            "sqlite3",
            "_sqlite3",
            "mmap",
            "compileall",
            "py_compile",
            "distutils.file_util",
            "distutils.dir_util",
            "zipfile",
            "tarfile",
        ],
        FILES,
    ),
}

_RUNNING = (
    "system popen startfile fork forkpty execl execle execlp execv execve execvp execvpe spawnl spawnle spawnv spawnve spawnvp "
    "posix_spawn posix_spawnp"
)
_BUILTINS = {
    **dict.fromkeys(("eval", "exec", "execfile", "compile", "apply", "breakpoint", "globals", "locals", "vars"), CODE),
    **dict.fromkeys(("__import__", "delattr", "setattr", "__build_class__"), CODE),
    **dict.fromkeys(("open", "file", "input", "raw_input"), FILES),
}
#: "module.name" -> what it does.
NAMES: dict[str, str] = {
    **{f"{module}.{name}": PROGRAMS for module in ("os", "posix", "nt") for name in _RUNNING.split()},
    **{
        f"{module}.{name}": does
        for module in ("builtins", "__builtin__", "__builtins__")
        for name, does in _BUILTINS.items()
    },
    **dict.fromkeys(
        (
            *("types.CodeType", "types.FunctionType", "types.MethodType", "types.LambdaType", "types.GeneratorType"),
            *("cloudpickle.cloudpickle._builtin_type", "cloudpickle.cloudpickle._make_function"),
            *("cloudpickle.cloudpickle._function_setstate", "cloudpickle.cloudpickle._make_cell"),
            *("cloudpickle.cloudpickle._make_empty_cell", "cloudpickle.cloudpickle._make_skel_func"),
            *(
                "dill._dill._create_function",
                "dill._dill._create_code",
                "dill._dill._eval_repr",
                "dill._dill._import_module",
            ),
            *("operator.attrgetter", "operator.methodcaller", "_operator.attrgetter", "_operator.methodcaller"),
            *("functools.reduce", "_functools.reduce", "torch.utils._config_module.ConfigModule.load_config"),
            *("torch.utils.data.datapipes.utils.decoder.basichandlers", "trace.Trace", "profile.run", "profile.runctx"),
            *("profile.Profile", "code.interact", "code.InteractiveInterpreter", "code.InteractiveConsole"),
        ),
        CODE,
    ),
    **dict.fromkeys(
        (
            *(
                "torch.load",
                "torch.serialization.load",
                "torch.jit.load",
                "torch.export.load",
                "torch.ops.load_library",
            ),
            *("torch._ops.ops.load_library", "torch.classes.load_library", "cloudpickle.cloudpickle.subimport"),
            *("numpy.load", "numpy.lib.npyio.load", "numpy.lib._npyio_impl.load", "joblib.numpy_pickle.load"),
            *("sklearn.externals.joblib.load", "keras.models.load_model", "keras.saving.load_model"),
            *(
                "tensorflow.load_op_library",
                "tensorflow.load_library",
                "tensorflow.saved_model.load",
                "dill._dill.load",
            ),
            *("dill._dill.loads", "dill.loads", "dill.load", "joblib.load", "pandas.read_pickle"),
            *("pandas.io.pickle.read_pickle", "copyreg.add_extension"),
        ),
        LOADS,
    ),
    **dict.fromkeys(
        (
            *("io.open", "_io.open", "io.FileIO", "_io.FileIO", "io.open_code", "_io.open_code", "codecs.open"),
            *("logging.FileHandler", "logging.handlers.RotatingFileHandler", "logging.config.fileConfig"),
            *("numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.genfromtxt", "numpy.savetxt", "numpy.save"),
            *("torch.save", "torch.serialization.save", "torch.from_file", "pathlib.Path.write_text"),
            *("pathlib.Path.write_bytes", "pathlib.Path.read_text", "pathlib.Path.read_bytes", "pathlib.Path.unlink"),
            *("pathlib.Path.open", "pathlib.PosixPath.open", "pathlib.PosixPath.write_text"),
        ),
        FILES,
    ),
    **dict.fromkeys(("commands.getoutput", "commands.getstatusoutput", "uuid._get_command_stdout"), PROGRAMS),
    "logging.config.dictConfig": CODE,
    "keras.utils.get_file": NETWORK,
    "keras.src.utils.file_utils.get_file": NETWORK,
    "tensorflow.keras.utils.get_file": NETWORK,
}
#: What honest pickles call too, for an enum or a nested class.
GETATTR = frozenset({"builtins.getattr", "__builtin__.getattr"})
#: Texts that a pickle with a getattr has no honest need of anywhere; and those that it has none of as the getattr's argument.
TELLING = frozenset(
    (
        *("__import__", "__globals__", "__builtins__", "__subclasses__", "__code__", "popen", "Popen", "check_output"),
        *("run_code", "runcode", "runstring", "load_module", "import_module"),
    )
)
TELLING_NEARBY = frozenset(["system", "eval", "exec", "compile", "spawn", "urlopen", "open"])
#: Modules that are dangerous under whatever other module they are reached by (torch.serialization.os.system).
_REACHED = frozenset(
    [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "builtins",
        "__builtin__",
        "__builtins__",
        "shutil",
        "importlib",
        "socket",
        "pty",
        "runpy",
    ]
)

#: Operations of TensorFlow that run Python, or touch files and the network, whoever runs the graph.
TENSORFLOW: dict[str, str] = {
    **dict.fromkeys(("PyFunc", "PyFuncStateless", "EagerPyFunc"), CODE),
    **dict.fromkeys(("ReadFile", "WriteFile"), FILES),
    **dict.fromkeys(("RpcCall", "RpcClient", "RpcServer"), NETWORK),
}


def harm(module: str, name: str) -> str:
    """What a global does that no weights need; "" for all others. Names with dots are attributes of attributes."""
    parts = f"{module}.{name}".split(".")
    found = _listed(parts)
    for at in range(1, len(parts) - 1):
        if not found and parts[at] in _REACHED:
            found = _listed(parts[at:])
    return found


def _listed(parts: list[str]) -> str:
    for length in range(len(parts), 0, -1):
        known = ".".join(parts[:length])
        if known in NAMES:
            return NAMES[known]
        if length < len(parts) and known in MODULES:
            return MODULES[known]
    return ""
