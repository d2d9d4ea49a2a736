"""A box that takes one update from start to end. It is killed at any moment and started again.

python ota_client.py FOLDER ROOT URL FLEET BUNDLE CLOCK [KEY OF THE FLEET]
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from appliance.services.unwrapping import FleetKeys
from appliance.vault.memory import MemoryKeeper
from appliance.vault.secret import Secret
from ota.fetch import Course
from ota.manifest import Host
from ota.sources import Repository
from ota.store import Store
from ota.supply import Means, Supply, in_a_process_of_its_own
from ota.times import StoredTimes
from ota.trust import Trust


@dataclass(frozen=True)
class Asked:
    bundle: str


def main() -> None:
    folder, root, url, fleet, bundle, clock, *keys = sys.argv[1:]
    here = Path(folder)
    times = StoredTimes(here / "floor", 0.0, lambda: float(clock), lambda: 0.0)
    trust, store = Trust(here / "trust", Path(root).read_bytes(), times), Store(here / "models")
    means = Means(1 << 30, Host("1.0", 1 << 30), in_a_process_of_its_own, _unwrapper(keys))
    supply, asked = Supply(trust, Repository.at(url), fleet, store, here / "updates", means), Asked(bundle)
    print("begun", flush=True)
    if store.folder(bundle) is None:
        supply.bring(asked, Course(rest=lambda seconds: None))
        supply.verify(asked)
        store.add(supply.make(asked), bundle)
    store.use("pump", bundle)
    supply.clear(asked)


def _unwrapper(keys: list[str]) -> FleetKeys | None:
    vault = MemoryKeeper(lambda: 0)
    for number, key in enumerate(keys):
        vault.put(f"fleet/{number}", Secret(Path(key).read_bytes()))
    return FleetKeys(vault) if keys else None


main()
