"""Node-RED as a peer: installed once from npm into the cache folder; a flow without inference, editor or listener."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

VERSION = "4.1.8"  # the newest that runs on Node.js 18 to 22
INSTALL_S = 600.0

# Mean and standard deviation over the window: no model at all.
SCORE = """\
const WINDOW = 64, HOP = 16;
const windows = context.get("windows") || {};
const held = windows[msg.topic] || (windows[msg.topic] = {rows: [], count: 0});
held.rows.push(Object.values(msg.payload));
if (held.rows.length > WINDOW) held.rows.shift();
held.count += 1;
context.set("windows", windows);
if (held.rows.length < WINDOW || held.count % HOP) return null;

const last = held.rows[WINDOW - 1];
let worst = 0;
for (let channel = 0; channel < last.length; channel++) {
    let sum = 0, squares = 0;
    for (const row of held.rows) {
        sum += row[channel];
        squares += row[channel] * row[channel];
    }
    const mean = sum / WINDOW;
    const deviation = Math.sqrt(Math.max(squares / WINDOW - mean * mean, 1e-12));
    worst = Math.max(worst, Math.abs(last[channel] - mean) / deviation);
}
return {
    topic: msg.topic.replace("/reading/", "/score/"),
    payload: {score: worst, threshold: 3, alarm: worst > 3},
};
"""

SETTINGS = {
    "flowFile": "flows.json",
    "credentialSecret": False,
    "httpAdminRoot": False,
    "httpNodeRoot": False,
    "uiHost": "127.0.0.1",
    "telemetry": {"enabled": False, "updateNotification": False},
    "logging": {"console": {"level": "warn"}},
}


def available() -> str:
    """Why it cannot be measured here; empty where it can."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def installed() -> Path:
    """Node-RED's folder. The first call installs it (RuntimeError where npm fails)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "millwright-bench" / f"node-red-{VERSION}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install(folder)
        (folder / "complete").touch()
    return folder / "node_modules" / "node-red"


def command(folder: Path, broker_port: int) -> list[str | Path]:
    """Writes settings and flow into `folder`; the command that runs them."""
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(SETTINGS, indent=4)};\n")
    (folder / "flows.json").write_text(json.dumps(_flow(broker_port), indent=4))
    return ["node", installed() / "red.js", "--userDir", folder, "--settings", folder / "settings.js"]


def _install(folder: Path) -> None:
    log = folder / "install.log"
    started = time.monotonic()
    end = "" if sys.stderr.isatty() else "\n"
    with log.open("wb") as output:
        child = subprocess.Popen(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"node-red@{VERSION}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while (code := _wait(child)) is None:
            passed = time.monotonic() - started
            if not end or round(passed) % 10 == 1:
                print(f"\rinstalling Node-RED {VERSION} with npm, once: {passed:.0f} s", end=end, file=sys.stderr)
            if passed > INSTALL_S:
                child.kill()
    print(file=sys.stderr)
    if code:
        raise RuntimeError(f"npm could not install Node-RED {VERSION}; see {log}")


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(1.0)
    except subprocess.TimeoutExpired:
        return None


def _flow(port: int) -> list[dict[str, object]]:
    broker = {"broker": "127.0.0.1", "port": str(port), "protocolVersion": "4", "keepalive": "60", "autoConnect": True}
    topic = {"topic": "mw/v1/reading/#", "qos": "0", "datatype": "utf8", "broker": "broker", "inputs": 0}
    return [
        {"id": "flow", "type": "tab", "label": "bench"},
        {"id": "broker", "type": "mqtt-broker", "cleansession": True, "usetls": False, **broker},
        {"id": "in", "type": "mqtt in", "z": "flow", **topic, "wires": [["parse"]]},
        {"id": "parse", "type": "json", "z": "flow", "property": "payload", "action": "obj", "wires": [["score"]]},
        {"id": "score", "type": "function", "z": "flow", "func": SCORE, "outputs": 1, "wires": [["out"]]},
        {"id": "out", "type": "mqtt out", "z": "flow", "topic": "", "qos": "0", "broker": "broker", "wires": []},
    ]
