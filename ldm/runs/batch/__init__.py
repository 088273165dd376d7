"""Many edits by one model: rows -> jobs -> workers -> run folders, a summary and a page.

`rows` reads and plans, `job` is what `scripts/batch_editing.py` does, `workers` runs one process a device, `work` is
what such a process does, `report` keeps what came of it.
"""
