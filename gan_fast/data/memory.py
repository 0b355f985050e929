"""How much more memory this process can allocate."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_bytes() -> int | None:
    """Return how many more bytes of memory this process can use.

    It is the smallest of three amounts: the free memory and swap of the machine, what the control groups (cgroups) of
    the process, such as a container's, leave below their limits, and what the limits of the process (ulimit) leave.

    Returns:
        Bytes, at least 0; None if none of the three can be read, as on other systems than Linux.

    Notes:
        Ask before allocating: Linux grants more memory than it has. An array that does not fit is noticed only while
        it is filled, and the kernel then often kills the process.
    """
    left = [*_machine(), *_process_limits(), *_control_groups()]
    return max(0, min(left)) if left else None


def _machine() -> list[int]:
    fields = _fields(_PROC / "meminfo", 1024)
    return [fields["MemAvailable:"] + fields.get("SwapFree:", 0)] if "MemAvailable:" in fields else []


def _process_limits() -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    used = _fields(_PROC / "self" / "status", 1024)
    left = []
    for limit, field in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            left.append(soft - used.get(field, 0))
    return left


def _control_groups() -> list[int]:
    """Return what each control group of this process, and each group above it, leaves (cgroup versions 1 and 2)."""
    left = []
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        # Only version 1 names controllers.
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
            # The limit is "max" if there is none.
            if most.isdigit() and used.isdigit():
                # The kernel frees the cache of files when memory is needed.
                left.append(int(most) - int(used) + _fields(group / "memory.stat", 1).get(cache, 0))
    return left


def _fields(path: Path, unit: int) -> dict[str, int]:
    """Return the lines "name number ..." of a file as a dict, each number times ``unit``."""
    words = [line.split() for line in _lines(path)]
    return {name: int(value) * unit for name, value, *_ in (w for w in words if len(w) > 1) if value.isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or the group does not exist
        return []


def in_words(count: int) -> str:
    """Return a number of bytes with its unit, such as "1.5 GiB (1610612736 bytes)"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit} ({count} bytes)"
    return f"{count} bytes"
