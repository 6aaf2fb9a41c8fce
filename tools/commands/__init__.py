"""Which commands does hjgc have? Every module of this folder: its name is the command's, `command` is what runs.

Their top levels import nothing slow, because `hjgc --help` imports them all for one line each.
"""
