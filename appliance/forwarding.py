"""Builds the forward service and its destinations from a Config. Names their adapters, for `assembly`."""

import platform
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from appliance import __version__, plugins
from appliance.config.document import Document
from appliance.config.schema import Config, Settable
from appliance.config.secrets import Reveal, VaultName
from appliance.errors import ChannelError, ConfigError, VaultError

if TYPE_CHECKING:
    from appliance.bus.port import Bus
    from appliance.channels import Configured
    from appliance.channels.port import Channel, Tools
    from appliance.services.forward import Forward
    from appliance.services.outlet import Outlet

FOLDER = "outbox"  # in the folder of states


def build(config: Config, document: Document, session: "Callable[[str], Bus]", reveal: Reveal) -> "Forward":
    """ConfigError names the line of what cannot be. `session` opens one with the bus, by its name."""
    from appliance.channels import configured
    from appliance.services.forward import Forward

    found = configured(document, config.forward)
    if not found:
        raise document.error(("forward",), "no destination is named", 'Add one, such as [forward.mqtt] url = "..."')
    told = tools(reveal, config.points)
    outlets = [outlet(one, config, document, told) for one in found]
    kinds = {kind for one in found for kind in one.settings.kinds}
    return Forward(session("forward"), session("forward-urgent"), outlets, sorted(kinds), time.time_ns)


def outlet(one: "Configured", config: Config, document: Document, told: "Tools") -> "Outlet":
    from appliance.channels.leaving.gate import Gate
    from appliance.masking.masker import Masker
    from appliance.services.outlet import Outlet
    from appliance.store.outbox import Outbox
    from appliance.store.post import Post

    settings = one.settings
    made = channel(one, document, told)
    path = config.paths.state / FOLDER / f"{one.name}.sqlite"
    post = Post(Outbox(path, settings.budget_mb << 20, settings.when_full), time.time_ns)
    # Until the vault has given the key, what should become a token is masked for good.
    gate = Gate(settings.kinds, settings.assets, Masker(settings.masking.without_tokens()), made.conflates)
    return Outlet(one.name, one.kind, made, gate, post, settings, time.time_ns, reveal=told.reveal)


def channel(one: "Configured", document: Document, told: "Tools") -> "Channel":
    asks_for_tokens = "token" in {*one.settings.masking.kinds.values(), *one.settings.masking.fields.values()}
    if asks_for_tokens and one.settings.token_key is None:
        remedy = 'token_key = {vault = "masking/cloud"}, and put 64 random bytes there.'
        raise document.error((*one.place, "masking"), "tokens are asked for, and there is no key for them", remedy)
    try:
        made: Channel = plugins.load("appliance.channels", one.kind).create(one.settings, told)
    except ConfigError as error:
        raise document.error(one.place, error.message, error.remedy) from None
    return made


def tools(reveal: Reveal, settable: Sequence[Settable] = ()) -> "Tools":
    from appliance.bus.mqtt import MqttBus
    from appliance.channels.port import Tools

    async def told(name: VaultName) -> bytes:
        try:
            return await reveal(name)
        except VaultError as error:
            raise ChannelError(error.message, error.remedy) from None

    return Tools(MqttBus, told, box_name(platform.node()), time.time_ns, __version__, settable)


def box_name(host: str) -> str:
    """This box, as a level of a topic."""
    return re.sub(r"[^a-z0-9_.-]+", "_", host.lower().partition(".")[0])[:64] or "box"
