"""How well the detector judges recordings: `tools/evaluate`."""
