"""Destinations that are there or not when they are asked: no line to them is held."""

import asyncio


class Asked:
    conflates = False
    depth = 1
    rest_s = 0.0
    progress = 0

    async def lost(self) -> str:
        """Nothing is lost before it is asked for."""
        await asyncio.Event().wait()
        return ""
