"""What the vault does with one request of one peer: permission, deed, audit.

Refused is whatever the policy does not allow, before anything is looked up: a refusal does not tell what there is.
"""

from collections.abc import Callable
from typing import Any, get_args

import msgspec

from appliance.errors import MillwrightError, RefusedError, VaultError
from appliance.vault import protocol
from appliance.vault.policy import Action, Peer, Policy, check_name
from appliance.vault.port import AuditSink, Custody, Layer
from appliance.vault.protocol import Request, Verb
from appliance.vault.secret import Secret

_NEEDS: dict[Verb, Action] = {Verb.GET: "read", Verb.PUT: "write", Verb.REMOVE: "write"}
_QUIET = frozenset({Verb.STATUS, Verb.ENTRIES, Verb.RECIPIENTS})  # tell no secret: audited only where refused


OWN = "millwright/"  # names of the vault's own: rules for others do not reach them
MAX_SUBJECTS = 32  # refusals and failures of one peer that are told apart; who makes up more fills no journal


class Desk:
    """To be called from one thread at a time: the audit's, too."""

    def __init__(self, custody: Custody, policy: Callable[[], Policy], audit: AuditSink) -> None:
        self.custody, self._policy, self._audit = custody, policy, audit
        self._tried: dict[str, set[str]] = {}  # by actor
        self.served = 0
        self.refused = 0

    def answer(self, peer: Peer, request: Request) -> bytes:
        """The body of an answer. VaultError."""
        if request.verb in _NEEDS:
            check_name(request.name)
        self._permit(peer, request)
        if request.verb in (Verb.PUT, Verb.REMOVE) and request.name.startswith(OWN):
            raise VaultError(f"'{request.name}' is the vault's own", "Choose another namespace.")
        try:
            body = self._do(peer, request)
        except MillwrightError as error:
            self._note_vain(peer, str(peer), request, "failed", {"reason": error.message})
            raise
        if request.verb not in _QUIET:
            self._note(str(peer), request, "done", _admitted(request))
        self.served += 1
        return body

    def credential(self, peer: Peer) -> Secret:
        """What systemd asks for in the name of a unit. RefusedError, VaultError."""
        request = Request(Verb.GET, self._policy().asked_for(peer))
        if peer.is_forged:
            reason = {"reason": "only root asks in the name of a unit", "unit": peer.unit}
            self._refuse(peer, f"uid {peer.uid}", request, reason)
            raise RefusedError(f"uid {peer.uid} is not systemd", "Only root asks in the name of a unit.")
        return Secret(self.answer(peer, request))

    def tick(self) -> None:
        self._audit.tick()

    def tidy(self) -> None:
        """Once an hour: refusals are told by name again."""
        self._tried.clear()

    def _permit(self, peer: Peer, request: Request) -> None:
        if request.verb is Verb.ENTRIES:
            return  # what is listed is what may be read or written
        action = _NEEDS.get(request.verb, "manage")
        if request.verb is Verb.ROTATE and request.detail == "secret":
            action = "write"
        if not self._allows(peer, action, request.name):
            self._refuse(peer, str(peer), request)
            subject = f"'{request.name}'" if request.name else "the vault"
            raise RefusedError(
                f"{peer} may not {action} {subject}",
                "Ask as root or as the vault's user, or add a rule to the file that vault.policy names.",
            )

    def _allows(self, peer: Peer, action: Action, name: str) -> bool:
        return self._policy().allows(peer, "manage" if name.startswith(OWN) else action, name)

    def _refuse(self, peer: Peer, actor: str, request: Request, detail: dict[str, Any] | None = None) -> None:
        self.refused += 1
        self._note_vain(peer, actor, request, "refused", detail)

    def _note_vain(
        self, peer: Peer, actor: str, request: Request, outcome: str, detail: dict[str, Any] | None = None
    ) -> None:
        """What came to nothing costs its sender nothing either: of one who may not manage, only so many are told
        apart, whatever he varies."""
        if not self._policy().allows(peer, "manage"):
            tried, what = self._tried.setdefault(actor, set()), str((request[:3], detail))
            if len(tried) < MAX_SUBJECTS:
                tried.add(what)
            elif what not in tried:
                request, detail = request._replace(name="others", detail=""), None
        self._note(actor, request, outcome, detail)

    def _do(self, peer: Peer, request: Request) -> bytes:
        custody = self.custody
        match request.verb:
            case Verb.STATUS:
                return protocol.to_body(custody.status())
            case Verb.GET:
                return custody.get(request.name).reveal()
            case Verb.PUT:
                return protocol.to_body(custody.put(request.name, request.content))
            case Verb.REMOVE:
                custody.remove(request.name)
            case Verb.ENTRIES:
                return protocol.to_body(self._listed(peer, request.detail))
            case Verb.ROTATE:
                custody.rotate(_layer(request.detail), request.name)
            case _:
                return self._manage(request)
        return b""

    def _manage(self, request: Request) -> bytes:
        custody = self.custody
        match request.verb:
            case Verb.BACKUP:
                return custody.backup()
            case Verb.RENEW:
                return custody.renew_recovery().reveal()
            case Verb.RECIPIENTS:
                return protocol.to_body(list(custody.recipients()))
            case Verb.ADMIT:
                custody.add_recipient(_text(request.content))
            case Verb.DISMISS:
                custody.remove_recipient(request.detail)
            case Verb.EXPECT:
                return custody.expect(*_releases(request.content)).encode()
            case Verb.SETTLED:
                custody.settled()
        return b""

    def _listed(self, peer: Peer, prefix: str) -> list[object]:
        return [
            entry
            for entry in self.custody.entries(prefix)
            if self._allows(peer, "read", entry.name) or self._allows(peer, "write", entry.name)
        ]

    def _note(self, actor: str, request: Request, outcome: str, detail: dict[str, Any] | None = None) -> None:
        action = f"vault.{request.verb.name.lower()}"
        about = {"about": request.detail[:80]} if request.detail else {}
        self._audit.note(actor, action, request.name, outcome, {**about, **(detail or {})})


def _admitted(request: Request) -> dict[str, Any]:
    """Who was let in: the names in the lines that were taken."""
    if request.verb is not Verb.ADMIT:
        return {}
    lines = (line.partition("#")[0].split() for line in _text(request.content).splitlines())
    return {"about": ", ".join(words[1] for words in lines if len(words) > 1)}


def _releases(content: Secret) -> tuple[dict[str, str], dict[str, str]]:
    try:
        return msgspec.json.decode(content.reveal(), type=tuple[dict[str, str], dict[str, str]])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VaultError("these are no values of releases", "Ask with millwright update os.") from error


def _layer(text: str) -> Layer:
    for layer in get_args(Layer):
        if layer == text:
            return layer  # type: ignore[no-any-return]  # one of the literals
    raise VaultError(f"'{text}' is no layer", f"There are: {', '.join(get_args(Layer))}.")


def _text(content: Secret) -> str:
    try:
        return content.reveal().decode()
    except UnicodeDecodeError:
        raise VaultError("that is no text", "Give the line of a recipient.") from None
