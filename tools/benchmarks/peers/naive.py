"""What an engineer writes in an afternoon: paho, json, a deque a topic, numpy, synchronous OpenVINO.

python naive.py SOCKET MODEL: judges every 16th reading of a topic by its last 64.
"""

import json
import sys
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import openvino as ov
import paho.mqtt.client as mqtt

WINDOW = 64
HOP = 16
THRESHOLD = 1.0

model = ov.Core().compile_model(sys.argv[2], "CPU")
windows: dict[str, deque[list[float]]] = defaultdict(lambda: deque(maxlen=WINDOW))
counts: Counter[str] = Counter()


def on_connect(client: mqtt.Client, *_: Any) -> None:
    client.subscribe("mw/v1/reading/#")


def on_message(client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
    window = windows[message.topic]
    window.append(list(json.loads(message.payload).values()))
    counts[message.topic] += 1
    if len(window) == WINDOW and counts[message.topic] % HOP == 0:
        score = judge(np.array(window, dtype=np.float32).T)
        result = {"score": score, "threshold": THRESHOLD, "alarm": score > THRESHOLD}
        client.publish(message.topic.replace("/reading/", "/score/"), json.dumps(result))


def judge(window: np.ndarray) -> float:
    """[channels, 64] -> root mean square of what the model does not rebuild, of the worst channel."""
    mean, deviation = window.mean(axis=1, keepdims=True), window.std(axis=1, keepdims=True)
    normalised = (window - mean) / (deviation + 1e-6)
    residual = model(normalised)[0] - normalised
    return float(np.sqrt((residual**2).mean(axis=1)).max())


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport="unix")
client.on_connect = on_connect
client.on_message = on_message
client.connect(sys.argv[1])
client.loop_forever()
