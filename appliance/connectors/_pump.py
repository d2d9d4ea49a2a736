"""A small centrifugal pump in a closed room: its physics, its sensors and what can go wrong with it. No clock, no I/O.

    pump = Pump(seed=1)
    values = pump.step(dt_s=3.0, faults={"leak": 0.4})      # {"speed_rpm": 2871.0, "flow_lpm": 171.3, ...}

Hydraulics: the pump's head is `A n^2 - B Q^2` (affinity laws: flow ~ n, head ~ n^2, power ~ n^3), the pipe's is
`static + K(valve) Q^2` plus a leak through an orifice; where they meet, the pump runs. Motor: shaft power plus friction
over efficiency gives the current. Bearing and motor winding warm as first-order masses over the heat they take up.
Vibration adds in quadrature: rotor, flow, imbalance, wear, and bubbles where the NPSH margin shrinks. Demand, room and
mains vary in periods of minutes; nothing drifts. It begins warmed up. Same seed and steps, same readings.
"""

import math
import random
from collections.abc import Mapping

# Each fault, and the channels it shows in first.
SHOWS: dict[str, tuple[str, ...]] = {
    "bearing-wear": ("vibration_mm_s", "bearing_temperature_c"),
    "cavitation": ("vibration_mm_s",),
    "leak": ("pressure_bar", "flow_lpm"),
    "blocked-outlet": ("pressure_bar", "flow_lpm"),
    "imbalance": ("vibration_mm_s",),
    "sensor-drift": ("pressure_bar",),
}

# Noise (one standard deviation) and step of each sensor, in the channel's unit.
SENSORS: dict[str, tuple[float, float]] = {
    "speed_rpm": (1.5, 1.0),
    "flow_lpm": (1.2, 0.1),
    "pressure_bar": (0.008, 0.01),
    "current_a": (0.015, 0.01),
    "voltage_v": (0.6, 0.1),
    "bearing_temperature_c": (0.05, 0.1),
    "motor_temperature_c": (0.05, 0.1),
    "vibration_mm_s": (0.02, 0.01),
}

DEMAND_S = (300.0, 240.0)  # the two periods of the consumers
ROOM_S = 400.0
MAINS_S = 200.0
WARM_UP_S = 7200.0

_BAR_PER_M = 0.0981  # water
_RPM = 2900.0  # at full speed of the drive
_FLOW = 200.0  # l/min at the best point
_SHUT_OFF_M, _DROOP_M = 32.0, 8.0  # head at no flow, and what of it is lost at the best point
_STATIC_M, _FRICTION_M = 6.0, 18.0  # of the pipe, at the best point
_LEAK_LPM = 90.0  # of a full leak at the best point's head
_NPSH_M = 10.5  # at the suction, cold water
_BEARING_S, _WINDING_S = 240.0, 600.0  # thermal time constants


class Pump:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._phases = [self._random.uniform(0, math.tau) for _ in range(4)]
        self._elapsed_s = 0.0
        self._bearing_c, self._winding_c = 48.0, 62.0
        for _ in range(int(WARM_UP_S / 10)):
            self.step(10.0, {})

    def step(self, dt_s: float, faults: Mapping[str, float]) -> dict[str, float]:
        """What the sensors say `dt_s` later. `faults`: name -> how far it has come, 0 to 1."""
        self._elapsed_s += dt_s
        demand, speed, voltage, room_c = self._surroundings()
        flow, metered, head_m, bubbles = _hydraulics(speed, demand, faults)
        wear = faults.get("bearing-wear", 0.0)
        friction_w = 90.0 * speed**2 * (1 + 0.8 * wear)
        shaft_w = _hydraulic_w(flow, head_m) / _efficiency(flow / speed) + friction_w
        motor_w = shaft_w / 0.84
        self._bearing_c = _warmed(self._bearing_c, room_c + 0.29 * friction_w, dt_s / _BEARING_S)
        self._winding_c = _warmed(self._winding_c, room_c + 0.16 * (motor_w - shaft_w), dt_s / _WINDING_S)
        return self._sensed(
            {
                "speed_rpm": _RPM * speed * (1 - 0.012 * shaft_w / 1400),
                "flow_lpm": metered,
                "pressure_bar": head_m * _BAR_PER_M + 0.6 * faults.get("sensor-drift", 0.0),
                "current_a": motor_w / (math.sqrt(3) * voltage * 0.82),
                "voltage_v": voltage,
                "bearing_temperature_c": self._bearing_c,
                "motor_temperature_c": self._winding_c,
                "vibration_mm_s": _vibration(speed, flow, wear, faults.get("imbalance", 0.0), bubbles),
            }
        )

    def _surroundings(self) -> tuple[float, float, float, float]:
        """Demand (-1 to 1), speed (1 = full), voltage in V and the room in degrees C."""
        slow, quick = (self._wave(index, period) for index, period in enumerate(DEMAND_S))
        demand = 0.75 * slow + 0.25 * quick
        voltage = 400 + 2.5 * self._wave(2, MAINS_S)
        room_c = 22 + 0.4 * self._wave(3, ROOM_S)
        return demand, 1 + 0.012 * slow, voltage, room_c

    def _wave(self, index: int, period_s: float) -> float:
        return math.sin(math.tau * self._elapsed_s / period_s + self._phases[index])

    def _sensed(self, true: dict[str, float]) -> dict[str, float]:
        sensed = {}
        for name, (noise, step) in SENSORS.items():
            noisy = true[name] + self._random.gauss(0, noise)
            sensed[name] = round(round(noisy / step) * step, 3)
        return sensed


def _hydraulics(speed: float, demand: float, faults: Mapping[str, float]) -> tuple[float, float, float, float]:
    """Flow through the pump and past the meter in l/min, head in m, bubbles 0 to 1."""
    friction_m = _FRICTION_M * (1 - 0.16 * demand) * (1 + 7 * faults.get("blocked-outlet", 0.0))
    orifice = _LEAK_LPM * faults.get("leak", 0.0) / math.sqrt(_SHUT_OFF_M - _DROOP_M)
    shut_off_m = _SHUT_OFF_M * speed**2
    flow, _, _ = _meeting_point(shut_off_m, friction_m, orifice)
    margin_m = _npsh_margin(flow, faults.get("cavitation", 0.0))
    bubbles = min(1.0, max(0.0, (3 - margin_m) / 3))
    # Bubbles take the impeller's grip only once they fill its channels.
    shut_off_m *= 1 - 0.25 * max(0.0, bubbles - 0.6)
    return *_meeting_point(shut_off_m, friction_m, orifice), bubbles


def _meeting_point(shut_off_m: float, friction_m: float, orifice: float) -> tuple[float, float, float]:
    """Flow through the pump, flow past the meter (l/min) and head (m) where pump and pipe agree: by bisection."""
    low_m, high_m = 0.0, shut_off_m
    for _ in range(30):
        head_m = (low_m + high_m) / 2
        pumped = _FLOW * math.sqrt((shut_off_m - head_m) / _DROOP_M)
        metered = _FLOW * math.sqrt(max(0.0, head_m - _STATIC_M) / friction_m)
        if pumped > metered + orifice * math.sqrt(head_m):
            low_m = head_m
        else:
            high_m = head_m
    return pumped, metered, head_m


def _npsh_margin(flow: float, hot: float) -> float:
    """Metres between the pressure at the suction and what the impeller needs. A hot liquid boils sooner."""
    return _NPSH_M - 7.5 * hot - 0.8 * (flow / _FLOW) ** 2 - (2 + 2 * (flow / _FLOW) ** 2)


def _hydraulic_w(flow: float, head_m: float) -> float:
    return 9810 * (flow / 60_000) * head_m


def _efficiency(flow_at_full_speed: float) -> float:
    return max(0.15, 0.62 * (1 - ((flow_at_full_speed / _FLOW - 1) / 1.3) ** 2))


def _warmed(now_c: float, target_c: float, time_constants: float) -> float:
    return target_c + (now_c - target_c) * math.exp(-time_constants)


def _vibration(speed: float, flow: float, wear: float, imbalance: float, bubbles: float) -> float:
    """RMS in mm/s. Away from its best point the flow shakes the pump."""
    running = 0.9 * speed**2 + 0.5 * flow / _FLOW + 1.2 * max(0.0, 0.7 - flow / _FLOW)
    return math.hypot(running, 2.2 * wear * speed, 2.5 * imbalance * speed**2, 3.0 * bubbles)
