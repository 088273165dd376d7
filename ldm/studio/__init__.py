"""The studio: a page to paint masks and type prompts on, and the same as a web API; see docs/studio.md.

The server's process imports no torch, so that the page is there at once: models live in processes of their own.
"""
