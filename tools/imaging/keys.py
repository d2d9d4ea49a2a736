"""Test keys: Secure Boot, PCR signing and update signing. A release's own are kept elsewhere; see image/README.md.

secure-boot.key .crt    signs systemd-boot and the kernel image; enrolled as PK, KEK and db
pcr.key .crt            signs what PCR 11 will be; the disk's key and the vault's open to what it has signed
update.key .gpg         signs SHA256SUMS of a release; the image carries the public half
root.json               root of the repositories that a box takes updates from; of test keys, one in the cache
"""

import os
import shutil
from pathlib import Path

from ota.publish import command
from tools.imaging import builder, places
from tools.imaging.places import Places

ROOT = "root.json"
PASSPHRASE = "of a test repository"  # its keys lie beside it: no box in the world believes them

FILES = ("secure-boot.key", "secure-boot.crt", "pcr.key", "pcr.crt", "update.key", "update.gpg")
SCRIPT = """set -eu
umask 077
cd "$1"
for name in secure-boot pcr; do
    openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 3650 -subj "/CN=Millwright test key, $name" \\
        -keyout "$name.key" -out "$name.crt"
done
export GNUPGHOME=/tmp/gnupg
mkdir "$GNUPGHOME"
gpg --batch --passphrase '' --quick-generate-key 'Millwright test key, update' ed25519 sign never
gpg --batch --armor --export-secret-keys >update.key
gpg --batch --export >update.gpg
gpgconf --kill all
"""


def make(where: Places) -> bool:
    """False where they are there already. BuilderError."""
    made = not all((where.keys / name).exists() for name in FILES)
    if made:
        where.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        builder.run(where, ["sh", "-c", SCRIPT, "keys", str(where.keys)], where.cache / "keys.log")
    if not os.environ.get(places.KEYS) and not (where.keys / ROOT).exists():
        shutil.copyfile(repository(where) / "metadata" / f"1.{ROOT}", where.keys / ROOT)
        made = True
    return made


def repository(where: Places) -> Path:
    """That test keys are the root of; `workshop` is where releases are added to it."""
    workshop = where.cache / "test-repository" / "workshop"
    if not workshop.exists():
        os.environ.setdefault(command.PASSPHRASE, PASSPHRASE)
        given = ["init", str(workshop), "--fleet", "trial", "--make-keys", str(workshop.with_name("keys"))]
        if command.main(given):
            raise builder.BuilderError(f"no repository could be made in {workshop}")
    return workshop / "repository"


def check(where: Places) -> None:
    """BuilderError names what is missing."""
    missing = [name for name in FILES if not (where.keys / name).exists()]
    if missing:
        raise builder.BuilderError(f"{where.keys} lacks {', '.join(missing)}: tools/image keys makes test keys")
