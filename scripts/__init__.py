"""The command lines, a file each. An installation knows this folder as `ldm.commands`, see `ldm.cli`."""
