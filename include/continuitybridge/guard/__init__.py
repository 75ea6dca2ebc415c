"""The guard in front of everything: rate limits, and what is refused before anybody looks at it."""
