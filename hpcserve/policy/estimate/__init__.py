"""When a batch will be done: what its lines have cost so far, and what serves when.

`history` keeps a batch's own results in a few stretches; `cost` says what a line costs, and how
sure that is; `finish` lays the open work on the instances that serve and those to come.
"""
