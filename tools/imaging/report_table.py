"""The figures of two systems as Markdown: a table, then what the checkers find wrong with ours. Pure."""

from collections.abc import Callable, Sequence

from tools.imaging.report_figures import Kernel, Rules, System

NOT_MEASURED = "not measured"
KINDS = {"kconfig": "the kernel's configuration", "cmdline": "its command line", "sysctl": "sysctl"}


def markdown(ours: System, plain: System, name: str) -> str:
    """`name`: the profile and version of the image that was looked at."""
    rows = [(title, _cell(ours, figure), _cell(plain, figure)) for title, figure in _rows(ours, plain)]
    table = [f"| | image, {name} | plain Debian 13 |", "|---|---|---|"]
    table += [f"| {title} | {one} | {other} |" for title, one, other in rows]
    parts = ["\n".join(table), _units(ours), _lynis(ours, plain), _openscap(ours, plain), _kernel(ours)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(system: System, figure: Callable[[System], str | None]) -> str:
    return figure(system) or NOT_MEASURED


def _rows(ours: System, plain: System) -> list[tuple[str, Callable[[System], str | None]]]:
    version = next((f" {one.lynis.version}" for one in (ours, plain) if one.lynis), "")
    profiles = sorted({*ours.profiles, *plain.profiles})
    return [
        (f"Lynis{version}: hardening index, of 100", lambda one: str(one.lynis.index) if one.lynis else None),
        ("its warnings and suggestions", lambda one: str(len(one.lynis.advice)) if one.lynis else None),
        ("kernel-hardening-checker: right, and not", lambda one: _checks(one.kernel)),
        *((f"of those, {title}", _of_kind(kind)) for kind, title in KINDS.items()),
        *((f"OpenSCAP, `{profile}`: passed, failed", _of_profile(profile)) for profile in profiles),
        ("`systemd-analyze security`, mean of the services that run", _mean),
        ("memory in use when idle", lambda one: f"{one.memory_mb} MB" if one.memory_mb else None),
        ("disk as it is handed out, `zstd -10`", _size),
        ("packages", lambda one: one.facts.get("packages")),
        ("files with setuid, with setgid", lambda one: ", ".join(str(count) for count in one.files.values())),
        ("ports open to others", lambda one: None if one.ports is None else ", ".join(one.ports) or "none"),
        ("lockdown", lambda one: one.facts.get("lockdown")),
        ("power on to all services up", _seconds("up")),
        ("power on until a device is let in over TLS", _seconds("let-in")),
        ("power on to the first judged reading", _seconds("score")),
        ("the start by its own clock", _own_clock),
        ("kernel", lambda one: " ".join(one.facts.get("kernel-version", "").split()[2:3])),
    ]


def _checks(kernel: Kernel | None) -> str | None:
    return f"{sum(kernel.right.values())}, {sum(map(len, kernel.wrong.values()))}" if kernel else None


def _of_kind(kind: str) -> Callable[[System], str | None]:
    return lambda one: f"{one.kernel.right.get(kind, 0)}, {len(one.kernel.wrong.get(kind, ()))}" if one.kernel else None


def _of_profile(profile: str) -> Callable[[System], str | None]:
    return lambda one: _results(one.profiles[profile]) if profile in one.profiles else None


def _results(rules: Rules) -> str:
    rest = [f"{len(names)} {result}" for result, names in rules.by_result.items() if result not in ("pass", "fail")]
    share = f"{rules.count('pass')}, {rules.count('fail')}"
    return f"{share} ({', '.join(rest)})" if rest else share


def _mean(system: System) -> str | None:
    mean = system.mean_exposure
    return None if mean is None else f"{mean:.1f}"


def _size(system: System) -> str | None:
    size = system.facts.get("image-bytes")
    return f"{int(size) / 1e6:.0f} MB" if size else None


def _seconds(which: str) -> Callable[[System], str | None]:
    return lambda one: f"{one.times[which]:.0f} s" if which in one.times else None


def _own_clock(system: System) -> str | None:
    return system.facts.get("time", "").removeprefix("Startup finished in ").strip() or None


def _units(ours: System) -> str:
    listed = ", ".join(f"{unit.removesuffix('.service')} {value}" for unit, value in ours.of_ours.items())
    return f"`systemd-analyze security` of each unit of ours: {listed}." if listed else ""


def _lynis(ours: System, plain: System) -> str:
    if ours.lynis is None:
        return ""
    too = {test for test, _ in plain.lynis.advice} if plain.lynis else set()
    return _list(
        "Lynis' advice to the image (* is given to plain Debian too)",
        [f"{test}{'*' if test in too else ''}: {text}" for test, text in ours.lynis.advice],
    )


def _openscap(ours: System, plain: System) -> str:
    parts = []
    for profile, rules in ours.profiles.items():
        too = plain.profiles[profile].by_result.get("fail", ()) if profile in plain.profiles else ()
        failed = [f"{rule}{'*' if rule in too else ''}" for rule in rules.by_result.get("fail", ())]
        title = f"Rules of `{profile}` that the image fails (* plain Debian fails too)"
        parts.append(f"{title}: {', '.join(failed)}.")
    return "\n\n".join(parts)


def _kernel(ours: System) -> str:
    if ours.kernel is None:
        return ""
    shown = [text for kind in ("cmdline", "sysctl") for text in ours.kernel.wrong.get(kind, ())]
    title = "What kernel-hardening-checker misses on the image's command line and in its sysctl"
    return f"{title}: {', '.join(shown)}." if shown else ""


def _list(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""
