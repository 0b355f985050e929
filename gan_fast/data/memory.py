"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_bytes() -> int | None:
    """Return the least of what the machine, the control groups and the process's own limits leave.

    Returns:
        Bytes, >= 0; None where none of them can be read.

    Notes:
        Memory is granted when it is asked for and taken when it is written: an array that does not fit is found out
        late, often by the kernel's ending the process.
    """
    left = [*_machine(), *_limits(), *_control_groups()]
    return max(0, min(left)) if left else None


def _machine() -> list[int]:
    fields = _fields(_PROC / "meminfo", 1024)
    return [fields["MemAvailable:"] + fields.get("SwapFree:", 0)] if "MemAvailable:" in fields else []


def _limits() -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    taken = _fields(_PROC / "self" / "status", 1024)
    left = []
    for limit, field in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            left.append(soft - taken.get(field, 0))
    return left


def _control_groups() -> list[int]:
    """Read version 2's limits and version 1's, each of the group of this process and of those that it is in."""
    left = []
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        limit, usage, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = root.joinpath(*parts[:depth])
            most, used = (next(iter(_lines(group / name)), "") for name in (limit, usage))
            # "max" where there is no limit.
            if most.isdigit() and used.isdigit():
                # The cache of files, which the kernel frees on demand.
                left.append(int(most) - int(used) + _fields(group / "memory.stat", 1).get(cache, 0))
    return left


def _fields(path: Path, unit: int) -> dict[str, int]:
    words = [line.split() for line in _lines(path)]
    return {name: int(value) * unit for name, value, *_ in (w for w in words if len(w) > 1) if value.isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, or no such group
        return []


def in_words(count: int) -> str:
    """Write a number of bytes with a unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit} ({count} bytes)"
    return f"{count} bytes"
