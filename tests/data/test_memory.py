"""available_bytes on made-up files of the kernel and under real limits."""

import subprocess
import sys

import pytest

from gan_fast.data import memory

PROGRAM_UNDER_A_LIMIT = """
import resource, runpy, sys
available_bytes = runpy.run_path(sys.argv[1])["available_bytes"]
free = available_bytes()
resource.setrlimit(resource.RLIMIT_{limit}, (2**36, resource.RLIM_INFINITY))
assert available_bytes() <= min(free + 2**28, 2**36)
resource.setrlimit(resource.RLIMIT_{limit}, (2**20, resource.RLIM_INFINITY))
left = available_bytes()
resource.setrlimit(resource.RLIMIT_{limit}, (resource.RLIM_INFINITY,) * 2)
assert left == 0, left
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Replace the kernel's files by none and the process limits by none; the result writes files."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_process_limits", list)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:  4000 kB\nSwapFree: 1000 kB\n"}
V2 = {"proc/self/cgroup": "0::/a/b\n", "cgroup/memory.stat": "anon 5\n"}
V1 = {"proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/a\n"}
SYSTEMS = {
    "nothing known": ({}, None),
    "memory and swap": (MEMINFO, 5000 * 1024),
    "no group limit": (MEMINFO | V2 | {"cgroup/a/memory.max": "max\n", "cgroup/a/memory.current": "7\n"}, 5000 * 1024),
    "a group's limit": (
        MEMINFO
        | V2
        | {"cgroup/a/b/memory.max": "900\n", "cgroup/a/b/memory.current": "500\n"}
        | {"cgroup/a/b/memory.stat": "anon 5\ninactive_file 60\n"},
        460,
    ),
    "an outer group's limit": (V2 | {"cgroup/a/memory.max": "900", "cgroup/a/memory.current": "500"}, 400),
    "the limit of a container": (V2 | {"cgroup/memory.max": "900", "cgroup/memory.current": "500"}, 400),
    "above its limit": (V2 | {"cgroup/memory.max": "900", "cgroup/memory.current": "950"}, 0),
    "version 1": (
        V1
        | {"cgroup/memory/a/memory.limit_in_bytes": "900", "cgroup/memory/a/memory.usage_in_bytes": "500"}
        | {"cgroup/memory/a/memory.stat": "total_inactive_file 60"},
        460,
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_smallest_limit_is_returned(system, name):
    files, want = SYSTEMS[name]
    system(files)
    assert memory.available_bytes() == want


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
@pytest.mark.parametrize("limit", ["AS", "DATA"])
def test_limits_of_the_process_are_respected(limit):
    # The file is run by its path, as importing gan_fast would load torch, which takes seconds.
    program = PROGRAM_UNDER_A_LIMIT.replace("{limit}", limit)
    subprocess.run([sys.executable, "-c", program, memory.__file__], check=True)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (2**20, "1.0 MiB (1048576 bytes)"), (3 * 2**29, "1.5 GiB")],
)
def test_bytes_are_written_with_a_unit(count, words):
    assert memory.in_words(count).startswith(words)
