"""Methods × seeds × beds from one YAML file, one JSON line a run, and a table that averages nothing away.

`plan` reads the file, `run` trains what is missing, `search` tunes on the validation split, `statistics` compares
seed by seed, `table` writes the Markdown.
"""
