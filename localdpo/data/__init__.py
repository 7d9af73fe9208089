"""Data: from a name in a recipe to padded batches of token ids.

sources          open: a file, folder or hub data set as numbered rows
formats          detect and read: one table of formats; `pairs` and `single` read rows, `write` writes pairs
fields, messages what readers share: the fields of a row, chat messages
rows, prompts    every row as an example (see `types`), skipped or invalid; and as a prompt to answer
render           an example as text, through `chat_template` if the model has one
encode           text as token ids, cut to the limits
store            encoded rows on disk, and several data sets as one mixture; `inspect` reports on them
batches          which rows a step takes, as padded arrays
"""
