"""Bounds on what comes from outside, and on what leaves: sizes in characters or bytes, and counts.

They keep a pass with the largest permitted items under 400 MB, and its time in proportion to what it reads. A bound that an
item exceeds is named in the message with which the item fails.
"""

from __future__ import annotations

LONGEST_ITEM = 1024 * 1024
"""Characters of an item's run spec as JSON. The official client's have a few KB."""

MOST_VALUES = 100_000
"""Values in an item's run spec: an empty mapping has 2 characters, but takes 64 bytes of memory."""

DEEPEST = 100
"""Levels of nesting that a run spec may have; the official client's own have about eight."""

LONGEST_NAME = 4_096
"""Characters of a name in a run spec: of a run, project, entity, author, job, sweep or image. Macros stand for them."""

LONGEST_FILLED = 1024 * 1024
"""Characters that the values of macros add to an item's resource args."""

MOST_ENTRIES = 1_000
"""Entries of a list of mappings, such as the variables of a container; Vertex AI takes 100 of them."""

LONGEST_JOB = 1024 * 1024
"""Bytes of the CustomJob that an item becomes. Each pass reads the active jobs again."""

LARGEST_LEASE = 4 * 1024 * 1024
"""Characters of run specs after which no more items are popped before these have started."""

LARGEST_PAGE = 8 * 1024 * 1024
"""Bytes of jobs that one answer of Vertex AI should have at most. In memory they take five times as much."""

LARGEST_ROUND = 16 * 1024 * 1024
"""Bytes of the CustomJobs that one round of a pass keeps in memory; further items and attempts wait for the next pass."""

MOST_FAULTS = 3
"""Times that the check of an item may end in an unexpected error, before the item fails."""

MOST_FOR_A_RUN = 100
"""Items that may wait for one run that another job uses."""

MOST_KILLS = 2
"""Passes that may die while an item is checked alone, before the item fails."""

MOST_PROBLEMS = 20
"""Problems of one item, request or configuration that are listed. The first ones of an item end its check."""

MOST_WARNINGS = 10
"""Warnings of one item that its check adds, and that the ledger remembers."""

LONGEST_WARNING = 1_000
"""Characters of a warning that an item's check adds."""

LONGEST_MESSAGE = 5_000
"""Characters of any text for a person: a log entry's message, a failure or warning in W&B, an answer's error."""

LONGEST_WORD = 1_000
"""Characters of a word in such a text. A longer one is replaced by its length, because half of a key would not be redacted."""

LARGEST_REPORT = 160_000
"""Bytes of a pass's report as JSON: Cloud Logging takes entries of 256 KiB, and no metric counts a larger one."""

# What is read from outside

LARGEST_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer of W&B, once it is unpacked. 64 popped items of 100 KB fit into it."""

MOST_ANSWER_VALUES = 400_000
"""Values in an answer of W&B: an empty mapping has 2 bytes, but takes 64 bytes of memory."""

MOST_DIGITS = 300
"""Digits of a number; a longer one does not fit into a float."""

LONGEST_ID = 500
"""Characters of an id or a name that W&B gives; its own have up to 128."""

LARGEST_LEDGER = 24 * 1024 * 1024
"""Bytes of the ledger: that of ten thousand jobs and a hundred thousand waiting items has 22 MB."""

MOST_LEDGER_VALUES = 900_000
"""Values in the ledger: each entry that a pass writes has 28 bytes or more for one."""

MOST_DAMAGED = 1_000
"""Entries of one field of the ledger that may be left out because they are damaged; with more, the ledger counts as lost."""
