"""The opened vault as a value, and everything that can be done to it: each transition gives a new one. No I/O, no
clock; randomness only for keys and salts.

    key (KEK)         bound to the box by backends, wrapped to recipients; from it: MAC over the root, key of the index
    namespace key     one for each first part of a name; in the index
    record            one secret, sealed by `envelope` under its namespace's key

The index holds the digest of every record, the root's MAC covers the index: a record that is missing, of another
vault, or older than the rest is known. The own recovery recipient shares a voucher with the vault, under which what
is wrapped to it is sealed once more: a public key alone lets nobody pass off a file of his making as this vault.
"""

import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cbor2

from appliance.errors import SealError, VaultError
from appliance.vault import envelope, layout, recovery, suites
from appliance.vault.envelope import Place
from appliance.vault.layout import Binding, Head, Index, Namespace, Purpose, Root, Wrapped
from appliance.vault.port import KEY_BYTES, MAX_SECRETS, NAME, Entry
from appliance.vault.recovery import Recipient, RecoveryKey
from appliance.vault.secret import Secret
from appliance.vault.suites import Suite

AUDIT_KEY = "millwright/audit"  # signs the journal: an Ed25519 seed of 32 bytes

_NAME = re.compile(NAME)
_LABEL = b"millwright/vault/1/"


@dataclass(frozen=True)
class Item:
    entry: Entry
    digest: bytes
    record: bytes | None  # None where it is damaged in every copy


@dataclass(frozen=True)
class Keyring:
    head: Head  # as it was read or written last; `seal` brings its numbers up to date
    key: Secret
    namespaces: Mapping[str, Namespace]
    items: Mapping[str, Item]
    voucher: Secret

    @property
    def suite(self) -> Suite:
        return suites.by_id(self.head.suite)

    def damaged(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, item in self.items.items() if item.record is None))

    def records(self) -> list[bytes]:
        """In the order of the file."""
        return [item.record for _, item in sorted(self.items.items()) if item.record is not None]


# ---- opening and closing --------------------------------------------------------------------------------------------


def new(suite: Suite, own: RecoveryKey, recipients: tuple[Recipient, ...], box: str, now: int) -> Keyring:
    """An empty one, with a key and an id of its own. VaultError where a recipient or the box's name is refused."""
    if len(box.encode()) > layout.MAX_BOX_BYTES or not box.isprintable():
        raise VaultError("the box's name is too long or cannot be printed", f"At most {layout.MAX_BOX_BYTES} bytes.")
    head = Head(Purpose.VAULT, os.urandom(envelope.VAULT_BYTES), suite.id, 0, 0, None, now, now, box, (), ())
    ring = Keyring(head, _random(), {}, {}, own.voucher())
    return renew_key(ring, (own.recipient(), *recipients))


def unlock(root: Root, key: Secret, records: Mapping[bytes, bytes]) -> Keyring:
    """`records` by digest, as a survey finds them; one that is not among them is damaged. SealError where the key is
    another vault's or the root is not as it was written."""
    suite = suites.by_id(root.head.suite)
    if not hmac.compare_digest(suite.mac(_derived(suite, key, root.head, b"root"), root.body), root.mac):
        raise SealError("the vault's file was altered, or is another vault's", "Restore a backup.")
    plain = suite.open(_derived(suite, key, root.head, b"index"), root.index, _place_of_index(root.head))
    index = layout.read_index(plain)
    items = {name: Item(entry, of, records.get(of)) for name, (entry, of) in index.secrets.items()}
    return Keyring(root.head, key, index.namespaces, items, index.voucher)


def unwrap(root: Root, own: RecoveryKey) -> tuple[Secret, Recipient]:
    """The vault's key, and as whom. SealError where it is wrapped to none that this recovery key is of."""
    for wrapped in root.head.wrapped:
        if own.is_of(wrapped.recipient):
            info = _info(root.head, wrapped.recipient)
            sealed = wrapped.key
            if wrapped.recipient.name == recovery.OWN:
                sealed = suites.by_id(root.head.suite).open(own.voucher().reveal(), sealed, info)
            return own.unwrap(wrapped.recipient, sealed, info), wrapped.recipient
    names = ", ".join(wrapped.recipient.name for wrapped in root.head.wrapped)
    raise SealError("this recovery key is none of the vault's", f"It opens with the keys of: {names}.")


def seal(ring: Keyring, generation: int, anchor: int | None, now: int) -> tuple[Keyring, Root]:
    """The keyring and root of this generation, written at `now`."""
    head = replace(ring.head, generation=generation, anchor=anchor, written=now)
    secrets = {name: (item.entry, item.digest) for name, item in ring.items.items()}
    index = layout.pack_index(Index(dict(ring.namespaces), secrets, ring.voucher))
    suite = ring.suite
    sealed = suite.seal(_derived(suite, ring.key, head, b"index"), index, _place_of_index(head))
    body = layout.body_of(head, sealed)
    root = Root(head, sealed, body, suite.mac(_derived(suite, ring.key, head, b"root"), body))
    return replace(ring, head=head), root


# ---- secrets --------------------------------------------------------------------------------------------------------


def item(ring: Keyring, name: str) -> Item:
    """VaultError where there is none."""
    found = ring.items.get(checked(name))
    if found is None:
        raise VaultError(f"there is no secret '{name}'", "`millwright vault list` shows the names.")
    return found


def get(ring: Keyring, name: str) -> Secret:
    """VaultError where there is none; SealError where its record is damaged."""
    found = item(ring, name)
    if found.record is None:
        raise SealError(f"the record of '{name}' is damaged in both copies", "Put it again, or restore a backup.")
    namespace = ring.namespaces[_namespace_of(name)]
    return Secret(envelope.open(namespace.key.reveal(), _place(ring, found.entry, namespace), found.record))


def put(ring: Keyring, name: str, content: Secret, now: int) -> Keyring:
    """VaultError where the name is none, the content is too large, or there are MAX_SECRETS."""
    before = ring.items.get(checked(name))
    if before is None and len(ring.items) >= MAX_SECRETS:
        raise VaultError(f"'{name}' would be one more than {MAX_SECRETS} secrets", "Remove one that is not needed.")
    version = before.entry.version + 1 if before else 1
    entry = Entry(name, version, now, len(content.reveal()))
    namespace = ring.namespaces.get(_namespace_of(name)) or Namespace(1, _random())
    ring = replace(ring, namespaces={**ring.namespaces, _namespace_of(name): namespace})
    return _with_items(ring, {name: _sealed(ring, entry, namespace, content)})


def remove(ring: Keyring, name: str) -> Keyring:
    """VaultError where there is none. A namespace's key goes with its last secret."""
    gone = item(ring, name)
    items = {name: one for name, one in ring.items.items() if one is not gone}
    used = {_namespace_of(name) for name in items}
    return replace(
        ring, items=items, namespaces={name: ring.namespaces[name] for name in ring.namespaces if name in used}
    )


def renew_secret(ring: Keyring, name: str) -> Keyring:
    """Sealed anew: the same content and version, another record key."""
    entry, content = item(ring, name).entry, get(ring, name)
    return _with_items(ring, {name: _sealed(ring, entry, ring.namespaces[_namespace_of(name)], content)})


def renew_namespace(ring: Keyring, namespace: str) -> Keyring:
    """Another key, and all its secrets sealed under it. SealError names a damaged one: it would be lost for good."""
    if namespace not in ring.namespaces:
        raise VaultError(f"there is no namespace '{namespace}'", f"There are: {', '.join(sorted(ring.namespaces))}.")
    fresh = Namespace(ring.namespaces[namespace].epoch + 1, _random())
    items = {
        name: _sealed(ring, one.entry, fresh, get(ring, name))
        for name, one in ring.items.items()
        if _namespace_of(name) == namespace
    }
    return _with_items(replace(ring, namespaces={**ring.namespaces, namespace: fresh}), items)


def checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise VaultError(
            f"{name[:80]!r} cannot name a secret",
            "Two to four parts of a-z, 0-9, dot, dash and underscore: mqtt/plant.",
        )
    return name


# ---- the vault's key ------------------------------------------------------------------------------------------------


def renew_key(ring: Keyring, recipients: tuple[Recipient, ...] | None = None) -> Keyring:
    """Another key, wrapped to the recipients (the same, where none are given), bound by no backend yet."""
    if recipients is None:
        recipients = tuple(wrapped.recipient for wrapped in ring.head.wrapped)
    head = replace(ring.head, epoch=ring.head.epoch + 1, bindings=(), wrapped=())
    ring = replace(ring, head=head, key=_random())
    return replace(ring, head=replace(head, wrapped=tuple(_wrap(ring, one) for one in recovery.distinct(recipients))))


def renew_recovery(ring: Keyring, own: RecoveryKey) -> Keyring:
    """Another key, and another recovery key for it; bound by no backend yet."""
    others = tuple(one.recipient for one in ring.head.wrapped if one.recipient.name != recovery.OWN)
    return renew_key(replace(ring, voucher=own.voucher()), (own.recipient(), *others))


def bound(ring: Keyring, bindings: tuple[Binding, ...]) -> Keyring:
    """With these bindings of its key, and no others."""
    if len(bindings) > layout.MAX_BINDINGS:
        raise VaultError(f"at most {layout.MAX_BINDINGS} backends can bind a vault", "Unbind one that is not needed.")
    return replace(ring, head=replace(ring.head, bindings=bindings))


def admit(ring: Keyring, recipient: Recipient) -> Keyring:
    """One more recipient of the same key. VaultError where its name or key is there already."""
    recovery.distinct((*(one.recipient for one in ring.head.wrapped), recipient))
    return replace(ring, head=replace(ring.head, wrapped=(*ring.head.wrapped, _wrap(ring, recipient))))


def dismiss(ring: Keyring, name: str) -> Keyring:
    """Without that recipient, and with another key; bound by no backend yet. The own recovery key stays."""
    rest = tuple(one.recipient for one in ring.head.wrapped if one.recipient.name != name)
    if name == recovery.OWN:
        raise VaultError("the recovery key cannot be taken away", "Renew it: the old one then opens nothing new.")
    if len(rest) == len(ring.head.wrapped):
        raise VaultError(f"there is no recipient '{name}'", f"There are: {', '.join(one.name for one in rest)}.")
    return renew_key(ring, rest)


# ---- backups --------------------------------------------------------------------------------------------------------


def as_backup(ring: Keyring) -> Keyring:
    """Under a key of its own, which only recipients can open."""
    ring = renew_key(ring)
    return replace(ring, head=replace(ring.head, purpose=Purpose.BACKUP))


def from_backup(ring: Keyring, box: str, *, elsewhere: bool, now: int) -> Keyring:
    """A vault again, under another key. Elsewhere it is another vault: nothing it holds opens with keys of the first,
    and it signs its journal with a key of its own. Secrets whose records are damaged are left out."""
    items = {name: one for name, one in ring.items.items() if one.record is not None}
    if elsewhere:
        items.pop(AUDIT_KEY, None)
    head = replace(ring.head, purpose=Purpose.VAULT, box=box)
    if not elsewhere:
        return renew_key(replace(ring, head=head, items=items))
    head = replace(head, vault=os.urandom(envelope.VAULT_BYTES), created=now)
    fresh = replace(
        ring, head=head, items={}, namespaces={_namespace_of(name): Namespace(1, _random()) for name in items}
    )
    moved = {
        name: _sealed(fresh, one.entry, fresh.namespaces[_namespace_of(name)], get(ring, name))
        for name, one in items.items()
    }
    return renew_key(_with_items(fresh, moved))


# ---- inside ---------------------------------------------------------------------------------------------------------


def _with_items(ring: Keyring, items: Mapping[str, Item]) -> Keyring:
    return replace(ring, items={**ring.items, **items})


def _sealed(ring: Keyring, entry: Entry, namespace: Namespace, content: Secret) -> Item:
    place = _place(ring, entry, namespace)
    record = envelope.seal(ring.suite, namespace.key.reveal(), place, content.reveal())
    return Item(entry, layout.digest(record), record)


def _place(ring: Keyring, entry: Entry, namespace: Namespace) -> Place:
    return Place(ring.head.vault, entry.name, entry.version, namespace.epoch)


def _wrap(ring: Keyring, recipient: Recipient) -> Wrapped:
    info = _info(ring.head, recipient)
    key = recipient.wrap(ring.key, info)
    if recipient.name == recovery.OWN:
        key = ring.suite.seal(ring.voucher.reveal(), key, info)
    return Wrapped(recipient, key)


def _info(head: Head, recipient: Recipient) -> bytes:
    return cbor2.dumps([_LABEL + b"key", head.vault, head.suite, head.epoch, recipient.name])


def _place_of_index(head: Head) -> bytes:
    numbers = [head.format, int(head.purpose), head.vault, head.suite, head.epoch, head.generation]
    return cbor2.dumps([_LABEL + b"index", *numbers])


def _derived(suite: Suite, key: Secret, head: Head, use: bytes) -> bytes:
    return suite.derive(key.reveal(), _LABEL + use + b"\0" + head.vault)


def _namespace_of(name: str) -> str:
    return name.partition("/")[0]


def _random() -> Secret:
    return Secret(os.urandom(KEY_BYTES))
