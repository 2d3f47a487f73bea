"""The pure core: it takes events and the time, and returns effects. No socket, clock, logger or asyncio."""
