"""`millwright doctor accelerators`: every device tried with a model, in a process of its own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import InferenceError

if TYPE_CHECKING:
    from appliance.inference.checkup import Checkup, Examiner
    from appliance.inference.policy import Fact


def run(args: argparse.Namespace) -> int:
    from appliance import computing
    from appliance.inference import models
    from appliance.inference.checkup import Examiner
    from appliance.services.words import json_text

    config, _ = instance.configuration(args)
    bundle = models.load(Path(config.detect.model) if config.detect.model else models.shipped())
    backend = computing.inference_backend(config, bundle.card.backend)
    wanted = computing.inference_terms(config).devices
    examiner = Examiner(bundle, backend)
    try:
        found = [_examined(fact, examiner, fact.device in wanted) for fact in computing.devices_for(backend)()]
    finally:
        examiner.close()
    result = {
        "ok": not any(one["status"] == "fail" for one in found),
        "model": f"{bundle.card.name} {bundle.card.version}",
        "runtime": f"{backend.name} {backend.version}",
        "devices": found,
    }
    print(json_text(result) if args.json else "\n".join(_told(result)))
    return 0 if result["ok"] else 1


def _examined(fact: "Fact", examiner: "Examiner", wanted: bool) -> dict[str, Any]:
    """A device that is there and does not compute is a fault; one that is not there only where it is wanted."""
    known = {key: getattr(fact, key) for key in ("device", "name", "driver", "firmware", "node")}
    if fact.reason:
        status = "fail" if wanted else "warn" if fact.present else "absent"
        return {"status": status, **known, "reason": fact.reason, "remedy": fact.remedy}
    try:
        return {"status": "ok", **known, **_figures(examiner.examine(fact.device))}
    except InferenceError as error:
        return {"status": "fail", **known, "reason": error.message, "remedy": error.remedy}


def _figures(found: "Checkup") -> dict[str, Any]:
    return {
        "ran_on": found.ran_on,
        "compile_ms": round(found.compile_s * 1e3, 1),
        "compile_again_ms": round(found.again_s * 1e3, 1),
        "off_percent": round(found.off * 100, 4),
        "latency_ms": {"1": round(found.one_s * 1e3, 4), "16": round(found.many_s * 1e3, 4)},
        "rows_per_s": round(found.rows_per_s),
    }


def _told(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['model']} on {result['runtime']}, each device in a process of its own"]
    for one in result["devices"]:
        facts = ", ".join(str(one[key]) for key in ("name", "driver", "firmware", "node") if one[key])
        lines.append(f"{one['status']:<7}{one['device']}: {facts or 'not here'}")
        if "reason" in one:
            lines.append(f"         {one['reason']}")
            lines += [f"         -> {one['remedy']}"] if one["remedy"] else []
            continue
        latency = one["latency_ms"]
        lines += [
            f"         computes on {one['ran_on']}, {one['off_percent']:g} % off the CPU's answers",
            f"         ready in {one['compile_ms']:,.0f} ms, {one['compile_again_ms']:,.0f} ms from what was compiled",
            f"         1 row {latency['1']:.3f} ms, 16 rows {latency['16']:.3f} ms, {one['rows_per_s']:,} rows/s",
        ]
    return lines
