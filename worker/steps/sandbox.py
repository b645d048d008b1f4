"""What confines the compute child: an environment of listed variables, and what this host's kernel enforces.

`unshare` and `setpriv` of util-linux set the kernel's part up, and then become the child:

network     a network namespace of its own, without an interface; several processes of one job have its loopback
files       Landlock: the child reads Python, the system's libraries and its inputs, and writes its working folder
processes   Landlock: the child cannot read the memory or the environment of another process; a process namespace: what
            it started ends with it
privileges  no program that it starts gains any; root keeps no capability
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import service
import worker
from worker.steps import loopback

VARIABLES = {  # what Python, torch and the tests need; a variable that could hold a credential is not among them
    *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"),
    *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE"),
    *("UNLEARND_FAILPOINTS", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"),
}
PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH_", "PYTORCH_"),
    *("CUDA_", "CUDNN_", "CUBLAS_", "HIP_", "HSA_", "ROCR_", "ROCM_", "TRITON_"),
)
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/proc", "/sys", "/opt/rocm"),
    *("/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/etc/mime.types"),
    *("/etc/ssl", "/etc/OpenCL"),
)
DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "dxg", "kfd", "dri", "accel", "nvidia*")
READ = "execute,read-file,read-dir"
WRITE = f"{READ},write-file,truncate,make-reg,make-dir,remove-file,remove-dir,refer"
# The child is process 1 of its namespace, so the kernel kills the others when it ends. It ends with `unshare`, which
# passes its exit status on. Without a /proc of its own it still sees the host's, which Landlock guards.
PROCESSES = ("--pid", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What this host enforces.

    Attributes:
        network: The command that takes the network away; empty if the host has none.
        processes: The options of that command (`unshare`) that end whatever the child started with it, or none.
        files: The command that drops privileges and switches Landlock on; empty if the host has none.
    """

    network: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What the host does not enforce."""
        return [name for name in ("network", "processes", "files") if not getattr(self, name)]

    def command(
        self, command: Sequence[str], *, readable: Sequence[Path], writable: Sequence[Path], several: bool = False
    ) -> list[str]:
        """A command that confines itself, and then becomes `command`.

        Args:
            command: What to run. Python, its packages and the system's libraries are readable.
            readable: Further files and folders that it may read.
            writable: Folders in which it may read, write and make files.
            several: Whether it is several processes, which reach each other over the loopback interface.
        """
        processes = [
            *self.network,
            *(("--keep-caps",) if several and "--user" in self.network else ()),
            *self.processes,
        ]
        if several and self.network:
            processes += [sys.executable, "-I", loopback.__file__]
        if not self.files:
            return [*processes, *command]
        devices = [path for pattern in DEVICES for path in Path("/dev").glob(pattern)]
        listed = [Path(entry or ".").resolve() for entry in sys.path]  # names only: this code may stand beside data
        rules = [
            *((READ, path) for path in (*map(Path, SYSTEM), *_python(), *readable)),
            *((WRITE, path) for path in (*devices, *writable)),
            *(("read-dir", path) for path in listed),
        ]
        paths = [
            f"--landlock-rule=path-beneath:{_rights(access, path)}:{path}" for access, path in rules if path.exists()
        ]
        return [*processes, *self.files, *paths, *command]


def _python() -> list[Path]:
    """Where Python, this code and its packages are."""
    packages = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    libraries = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    own = [Path(folder) for package in (service, worker) for folder in package.__path__]
    return [Path(sys.prefix), Path(sys.base_prefix), *packages, *own, *libraries]


def _rights(access: str, path: Path) -> str:
    """The rights that apply to a path: those of folders do not apply to a file."""
    of_files = {"execute", "read-file", "write-file", "truncate"}
    return access if path.is_dir() else ",".join(name for name in access.split(",") if name in of_files)


def child_environment(environment: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """The child's variables: those of the list, none of a cloud, a hub or this service; and no way to a hub."""
    listed = {name: value for name, value in environment.items() if name in VARIABLES or name.startswith(PREFIXES)}
    ours = {"TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", **listed, **ours}  # a decoding has products of very many shapes


@cache
def host_sandbox() -> Sandbox:
    """What this host enforces, found out by trying. What would keep Python itself from starting is not used."""
    namespaces = (("unshare", "--net"), ("unshare", "--user", "--map-current-user", "--net"))
    network = next((command for command in namespaces if _runs([*command, "true"])), ())
    processes = PROCESSES if network and _runs([*network, *PROCESSES, "true"]) else ()
    root = ("--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    confined = Sandbox(network, processes, ("setpriv", "--no-new-privs", *root, "--landlock-access=fs"))
    imports = [sys.executable, "-c", "import service.domain.job_input, worker"]
    return confined if _runs(confined.command(imports, readable=[], writable=[])) else Sandbox(network, processes)


def _runs(command: Sequence[str]) -> bool:
    """Whether a command runs here."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
