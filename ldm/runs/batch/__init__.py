"""Many edits by one model: rows -> jobs -> workers -> run folders, a summary and a page.

`records` and `rows` read and plan, `job` is what `scripts/batch_editing.py` does. `workers` (this machine) and
`cluster` (Ray) are the engines; which worker has what is `dispatch`'s, and what a worker does is `work`'s, for both.
`store` knows what is done, here or behind a URL. `outcome` is what is told of a row, `report`, `page` and `progress`
tell it, and `merge` puts together what shares of the rows have told.
"""
