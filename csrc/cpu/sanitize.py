"""Builds the CPU kernels for the compiler's sanitizers, apart from the real build, and runs the ops' tests on them.

    python csrc/cpu/sanitize.py [address] [thread] [--cases 200] [-- PYTEST_ARGUMENT ...]

address: AddressSanitizer and UndefinedBehaviorSanitizer, the operators of torch and the NumPy module, through the kernels'
tests (``pytest --place sanitized``) and so many fuzzed cases of each op. Leaks are not looked for: Python itself leaks.
thread: ThreadSanitizer, the NumPy module's pool of threads, called from several Python threads at once.

Needs GCC with its sanitizer libraries. Nothing is compiled for several instruction sets (UF_NO_MULTIVERSION).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitize"
RUNTIME = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
CHECKED = {"address": "address,undefined", "thread": "thread"}

POOL = """
import threading, numpy as np, unet_fast.numpy as un
rng = np.random.default_rng(0)
labels = ((rng.random((3, 150, 200)) < 0.02) * rng.integers(1, 9, (3, 150, 200))).astype(np.int32)
image, field = rng.random((200, 300), dtype=np.float32), rng.normal(0, 5, (2, 3, 3))
truth = un.nearest_two(labels)[1], un.elastic_warp(image, field), un.weight_map(labels)
wrong = []
def work():
    for _ in range(5):
        now = un.nearest_two(labels)[1], un.elastic_warp(image, field), un.weight_map(labels)
        if not all(np.array_equal(a, b) for a, b in zip(truth, now)):
            wrong.append(1)
workers = [threading.Thread(target=work) for _ in range(4)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert not wrong
print("the same results from 4 Python threads on a pool of 4")
"""


def build(kind: str) -> Path:
    """Compile for a sanitizer; the folder that then holds the package and its tests."""
    folder = FOLDER / kind
    print(f"sanitize: building for {CHECKED[kind]} in {folder.relative_to(ROOT)}", flush=True)
    subprocess.run(
        [sys.executable, "setup.py", "build", f"--build-lib={folder / 'lib'}", f"--build-temp={folder / 'temp'}"],
        cwd=ROOT,
        env={**os.environ, "UNET_FAST_SANITIZE": CHECKED[kind]},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    tests = folder / "lib" / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder / "lib")
    return folder / "lib"


def environment(kind: str) -> dict[str, str]:
    """The sanitizer's library goes before all others, and the C++ library with it, whose exceptions it watches."""
    libraries = [_library(name) for name in (*RUNTIME[kind], "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }


def _library(name: str) -> str:
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).exists():
        sys.exit(f"sanitize: g++ has no {name}; install GCC's sanitizer libraries")
    return path


def check_address(cases: int, arguments: list[str]) -> None:
    folder = build("address")
    # a sanitizer writes to the process's own stderr and ends it, so pytest must not keep that
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "--place", "sanitized"]
    command = [sys.executable, "-m", "pytest", *options, "tests", *arguments]
    variables = {**environment("address"), "FUZZ_CASES": str(cases)}
    subprocess.run(command, cwd=folder, env=variables, check=True)


def check_thread() -> None:
    folder = build("thread")
    variables = {**environment("thread"), "OMP_NUM_THREADS": "4"}
    del variables["PYTHONMALLOC"]
    # the sanitizer wants its addresses where newer kernels' randomisation may put something else
    fixed = [path, "-R"] if (path := shutil.which("setarch")) else []
    subprocess.run([*fixed, sys.executable, "-c", POOL], cwd=folder, env=variables, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="address, thread (default: both)")
    parser.add_argument("--cases", type=int, default=200, help="fuzzed cases of each op (default: %(default)s)")
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    unknown = set(options.kinds) - set(CHECKED)
    if unknown:
        parser.error(f"no sanitizer named {', '.join(sorted(unknown))}; there are {', '.join(CHECKED)}")
    try:
        for kind in options.kinds or CHECKED:
            if kind == "thread":
                check_thread()
            else:
                check_address(options.cases, arguments[cut + 1 :])
            print(f"sanitize: {CHECKED[kind]} found nothing", flush=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"sanitize: failed with {error.returncode} in {' '.join(map(str, error.cmd[:6]))} ...")


if __name__ == "__main__":
    main()
