"""The command `guestmtce`: a module a word, which `main` puts into its table.

A module of a word has `NAMES`, the words with options of their own as they are typed ("lab vim"),
`add_parser(words)`, which adds the word and its options to the parser of the command, and sets `run` as the
one to call, and `run(arguments)`, which returns the exit status. What the word needs is imported by `run`:
--help needs nothing but the standard library, and packages are built where there is nothing else.

The text of a new word goes into the manual page too: `manual.PAGES` has what --help does not say.
"""
