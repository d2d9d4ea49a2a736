"""What the doctor finds of the vault."""

from collections.abc import Iterator

from appliance import assembly, binding
from appliance.cli.findings import Finding, Scene
from appliance.config import secrets
from appliance.errors import MillwrightError, RefusedError
from appliance.vault import client
from appliance.vault.port import Custody


def found(scene: Scene) -> Iterator[Finding]:
    """Whether there is one, whether it opens, what binds it and what that is worth."""
    config = scene.config
    path = assembly.vault_socket(config)
    named = sorted({name.vault for _, name in secrets.named(config)})
    if not assembly.has_vault(config) and not path.exists():
        if named:
            remedy = f"millwright vault init, then millwright vault put {named[0]}"
            yield Finding("vault", "fail", f"there is none, and the configuration names {', '.join(named)}", remedy)
        else:
            yield Finding("vault", "ok", "none was made, and no secret is named")
        return
    runs = client.answers(path)
    try:
        if runs:
            yield from _vault(client.by_socket(path), "runs")
        else:
            with binding.unlock(config, scene.document) as opened:
                yield from _vault(opened.custody, "opens, and does not run")
    except RefusedError:
        yield Finding("vault", "ok", "runs; this user may not ask how it is")
    except MillwrightError as error:
        yield Finding("vault", "fail", error.message, error.remedy or "See its log.")
        return
    yield from _binding(binding.Box(config, scene.document))


def _vault(custody: Custody, how: str) -> Iterator[Finding]:
    status = custody.status()
    does_not = f"; does not protect from: {status.promise.does_not[0]}" if status.promise.does_not else ""
    detail = f"{how}, bound by '{status.backend}', {status.secrets} secrets{does_not}"
    if status.damaged:
        remedy = "Put them again, or restore a backup."
        yield Finding(
            "vault", "fail", f"{len(status.damaged)} secrets are damaged: {', '.join(status.damaged)}", remedy
        )
    elif status.warnings:
        remedy = "millwright vault status"
        yield Finding("vault", "warn", f"{detail}; {'; '.join(status.warnings)}", remedy)
    else:
        yield Finding("vault", "ok", detail)


def _binding(box: binding.Box) -> Iterator[Finding]:
    """What this machine could bind a key with, and why not with more."""
    for candidate in box.candidates():
        if candidate.strength > 0 and candidate.reason:
            yield Finding(f"vault {candidate.name}", "warn", candidate.reason, candidate.remedy or "See its makers.")
        elif candidate.strength > 0 and not candidate.present:
            yield Finding(f"vault {candidate.name}", "ok", "not in this machine")
