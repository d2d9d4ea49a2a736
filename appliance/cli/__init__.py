"""The commands: one file each, found by its name.

A file has `register(subparsers)`, which adds its parser and sets `run`, and `run(args) -> int`, the exit code. A file
imports what is slow to import inside `run`: the help must not wait for it.
"""

SHARED = frozenset(
    {
        "accelerators",
        "asking",
        "auditing",
        "certifying",
        "custody",
        "findings",
        "following",
        "forwardcheck",
        "instance",
        "measuring",
        "nearby",
        "quantising",
        "reaching",
        "recovery",
        "screen",
        "sowing",
        "systems",
        "systemupdates",
        "unattended",
        "vaultcheck",
    }
)  # files here that commands share and that are none themselves
